"""One test for every family of backbones: what a bridge relies on, and what loading refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import HIDDEN, KINDS, LAYERS, SENTENCES, VOCABULARY, rewrite_as_wedlm, write_tiny_backbone
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM

from latentloom.bridge.backbone import Backbone, load_backbone
from latentloom.bridge.config import ModelConfig
from latentloom.errors import CheckpointError, ConfigError, CorruptFileError, FileError

CPU = torch.device("cpu")
NUM_PREFIX = 3


@pytest.fixture(params=KINDS)
def backbone(request: pytest.FixtureRequest, load_tiny: Callable[[str], Backbone]) -> Backbone:
    return load_tiny(request.param)


def load(folder: Path, **settings: object) -> Backbone:
    config = ModelConfig.model_validate({"pretrained_model_name_or_path": str(folder), **settings})
    return load_backbone(config, device=CPU, dtype=torch.float32)


def copy_of(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def random_prefix(rows: int) -> torch.Tensor:
    return torch.randn(rows, NUM_PREFIX, HIDDEN, generator=torch.Generator().manual_seed(1))


def test_a_backbone_is_frozen_and_says_what_it_is(backbone: Backbone) -> None:
    assert (backbone.hidden_size, backbone.num_layers, backbone.vocab_size) == (HIDDEN, LAYERS, VOCABULARY)
    assert len(backbone.tokenizer) < VOCABULARY  # its embeddings were not resized to the tokenizer's
    assert not any(weight.requires_grad for weight in backbone.model.parameters())
    assert not backbone.model.training
    assert backbone.output_weight.shape == backbone.embedding.weight.shape == (VOCABULARY, HIDDEN)
    states = backbone.decoder(input_ids=torch.tensor([[5, 6, 7]]))
    logits = backbone.model(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(states.last_hidden_state @ backbone.output_weight.T, logits)


@torch.no_grad()
def test_a_prefix_of_embeddings_is_read_as_tokens_with_these_embeddings_are(backbone: Backbone) -> None:
    ids = torch.tensor(backbone.tokenize(SENTENCES[:1], 100))
    by_token = backbone.decoder(input_ids=ids).last_hidden_state
    by_embedding = backbone.decoder(inputs_embeds=backbone.embedding(ids)).last_hidden_state
    torch.testing.assert_close(by_embedding, by_token, rtol=0, atol=0)

    # an untied copy of the embeddings whose first rows are the prefix: the same input through the token's own door
    prefix = random_prefix(1)
    expected = backbone.decoder(inputs_embeds=torch.cat([prefix, backbone.embedding(ids)], 1)).last_hidden_state
    own = backbone.embedding.weight.data
    try:
        table = torch.cat([own, prefix[0]])
        backbone.embedding.weight.data = table
        places = torch.arange(len(own), len(table))[None]
        found = backbone.decoder(input_ids=torch.cat([places, ids], 1)).last_hidden_state
    finally:
        backbone.embedding.weight.data = own
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_side_and_batch_mates_change_nothing(backbone: Backbone, side: str) -> None:
    rows = [torch.tensor(ids) for ids in backbone.tokenize(SENTENCES[:3], 100)]
    assert len({len(row) for row in rows}) > 1
    prefix = random_prefix(len(rows))
    alone = [
        backbone.decoder(inputs_embeds=torch.cat([prefix[i], backbone.embedding(row)])[None]).last_hidden_state[0]
        for i, row in enumerate(rows)
    ]
    longest = max(map(len, rows))
    together, seen = [], []
    for index, row in enumerate(rows):
        padding = backbone.embedding(torch.full((longest - len(row),), backbone.end_id))
        real = torch.cat([prefix[index], backbone.embedding(row)])
        ones, zeros = torch.ones(len(real), dtype=torch.long), torch.zeros(len(padding), dtype=torch.long)
        order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
        together.append(torch.cat(order(real, padding)))
        seen.append(torch.cat(order(ones, zeros)))
    mask = torch.stack(seen)
    states = backbone.decoder(
        inputs_embeds=torch.stack(together),
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
    ).last_hidden_state
    for index, expected in enumerate(alone):
        torch.testing.assert_close(states[index][mask[index].bool()], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_generation_from_a_prefix_is_the_same_with_and_without_a_cache(backbone: Backbone) -> None:
    embeddings = random_prefix(2)
    cached, cache, given = [], None, embeddings
    for _ in range(8):
        out = backbone.decoder(inputs_embeds=given, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        cached.append((out.last_hidden_state[:, -1] @ backbone.output_weight.T).argmax(-1))
        given = backbone.embedding(cached[-1])[:, None]
    anew = []
    for _ in range(8):
        out = backbone.decoder(inputs_embeds=embeddings, use_cache=False)
        anew.append((out.last_hidden_state[:, -1] @ backbone.output_weight.T).argmax(-1))
        embeddings = torch.cat([embeddings, backbone.embedding(anew[-1])[:, None]], 1)
    assert torch.equal(torch.stack(cached), torch.stack(anew))
    assert len(set(torch.stack(anew).flatten().tolist())) > 2  # not one token over and over, which would prove little


def test_texts_come_back_as_they_were(backbone: Backbone) -> None:
    texts = [*SENTENCES, " spaces  and\ttabs ", "Ünïcödé , punctuation !", "line\nbreak"]
    ids = backbone.tokenize(texts, 1000)
    assert [backbone.text(row) for row in ids] == texts
    assert [backbone.text([*row, backbone.end_id, 5, 6]) for row in ids] == texts
    assert [len(row) for row in backbone.tokenize(texts, 4)] == [min(4, len(row)) for row in ids]
    assert backbone.tokenize(["", "a"], 4)[0] == [] == backbone.tokenize([], 4)


def test_the_first_token_is_the_tokenizers_own_or_what_ends_texts(load_tiny: Callable[[str], Backbone]) -> None:
    llama, qwen = load_tiny("llama"), load_tiny("qwen3")
    assert llama.tokenizer.convert_ids_to_tokens([llama.sink_id, llama.end_id]) == ["<|im_start|>", "<|im_end|>"]
    assert qwen.tokenizer.convert_ids_to_tokens([qwen.sink_id, qwen.end_id]) == ["<|endoftext|>", "<|endoftext|>"]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "own"), [("qwen3", Qwen3ForCausalLM), ("qwen2", Qwen2ForCausalLM)])
def test_wedlm_computes_exactly_what_its_weights_do_in_the_class_of_transformers(
    kind: str, own: type, tmp_path: Path
) -> None:
    folder = write_tiny_backbone(tmp_path / kind, kind, seed=3)
    ids = torch.tensor([[3, 50, 7, 120, 9]])
    expected = own.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
    rewrite_as_wedlm(folder, has_norms=kind == "qwen3")
    wedlm = load(folder)
    assert type(wedlm.model) is own
    assert torch.equal(wedlm.model(input_ids=ids).logits, expected)


def test_wedlm_never_runs_its_own_code(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> None:
    folder = copy_of(backbone_folder("wedlm"), tmp_path / "wedlm")
    (folder / "modeling_wedlm.py").write_text("raise RuntimeError('ran')")
    (folder / "configuration_wedlm.py").write_text("raise RuntimeError('ran')")
    assert type(load(folder, trust_remote_code=True).model) is Qwen3ForCausalLM


def test_the_fingerprint_is_of_the_weights_and_not_of_how_they_are_read(
    tmp_path: Path, backbone_folder: Callable[[str], Path]
) -> None:
    folder = copy_of(backbone_folder("qwen3"), tmp_path / "copy")
    first = load(folder).fingerprint
    config = ModelConfig(pretrained_model_name_or_path=str(backbone_folder("qwen3")))
    assert load_backbone(config, device=CPU, dtype=torch.bfloat16).fingerprint == first
    change_config(folder, dtype="bfloat16", transformers_version="1.0", use_cache=False)
    split_into_shards(folder)
    assert load(folder).fingerprint == first
    shard = folder / "model-2-of-2.safetensors"
    weights = load_file(shard)
    name = min(weights)
    weights[name] = weights[name] + 1e-3
    save_file(weights, shard, metadata={"format": "pt"})
    assert load(folder).fingerprint != first


def split_into_shards(folder: Path) -> None:
    """Rewrite model.safetensors as two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number}-of-2.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


class TestRefusals:
    """One line each; `folder` is a sharded copy of a tiny Qwen3 that a test damages."""

    @pytest.fixture
    def folder(self, tmp_path: Path, backbone_folder: Callable[[str], Path]) -> Path:
        folder = copy_of(backbone_folder("qwen3"), tmp_path / "model")
        split_into_shards(folder)
        return folder

    def test_a_missing_shard(self, folder: Path) -> None:
        (folder / "model-2-of-2.safetensors").unlink()
        with pytest.raises(FileError, match=r"lacks 1 of its 2 files of weights, model-2-of-2\.safetensors first"):
            load(folder)

    def test_a_shard_that_is_cut_short(self, folder: Path) -> None:
        shard = folder / "model-1-of-2.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
        with pytest.raises(CorruptFileError, match=r"model-1-of-2\.safetensors is damaged"):
            load(folder)

    def test_a_shard_without_a_tensor_of_the_index(self, folder: Path) -> None:
        shard = folder / "model-1-of-2.safetensors"
        weights = load_file(shard)
        weights.pop("lm_head.weight")
        save_file(weights, shard, metadata={"format": "pt"})
        with pytest.raises(CorruptFileError, match=r"lacks 1 tensors that model\.safetensors\.index\.json puts there"):
            load(folder)

    def test_an_index_that_leads_out_of_the_folder(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
        with pytest.raises(CorruptFileError, match="names no weights"):
            load(folder)

    def test_weights_of_another_model(self, folder: Path) -> None:
        change_config(folder, num_hidden_layers=LAYERS + 1, layer_types=None)
        with pytest.raises(CheckpointError, match=r"lack \d+ tensors of the model in its config\.json"):
            load(folder)
        change_config(folder, num_hidden_layers=LAYERS - 1)
        with pytest.raises(CheckpointError, match=r"add \d+ tensors"):
            load(folder)

    def test_weights_of_another_size(self, folder: Path) -> None:
        change_config(folder, intermediate_size=64)
        with pytest.raises(CheckpointError, match=r"have other shapes for 9 tensors of the model"):
            load(folder)

    def test_pickled_weights(self, folder: Path) -> None:
        for file in folder.glob("model*"):
            file.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"pickle")
        with pytest.raises(FileError, match=r"holds only pytorch_model\.bin, which is not safe to read"):
            load(folder)

    def test_a_wedlm_config_of_neither_form(self, folder: Path) -> None:
        rewrite_as_wedlm(folder, has_norms=True)
        change_config(folder, attention_bias=True)
        with pytest.raises(CheckpointError, match="qk_norm = True and attention_bias = True"):
            load(folder)

    def test_code_of_its_own_unless_allowed_and_pinned(
        self, folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
        change_config(folder, model_type="own", architectures=["OwnModel"], auto_map=code)
        (folder / "own.py").write_text("raise RuntimeError('own code ran')")
        with pytest.raises(CheckpointError, match=r"type 'own' that needs code of its own"):
            load(folder)
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder / "modules"))
        with pytest.raises(CheckpointError, match="own code ran"):
            load(folder, trust_remote_code=True)
        assert caplog.text.count(str(folder / "own.py")) == 1  # said before it ran

    def test_code_from_another_repository(self, folder: Path) -> None:
        change_config(folder, model_type="own", auto_map={"AutoModelForCausalLM": "acme/code--own.OwnModel"})
        with pytest.raises(ConfigError, match="that of another repository, acme/code--own"):
            load(folder, trust_remote_code=True)

    def test_code_of_a_hub_name_that_is_not_pinned(self, folder: Path) -> None:
        for revision in (None, "main"):
            with pytest.raises(ConfigError, match=r"give the commit whose code you have read"):
                load(Path("acme/tiny"), pretrained_local_dir=folder, trust_remote_code=True, revision=revision)

    def test_a_model_that_is_not_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(FileError, match=r"/nowhere does not exist; give the folder of a model"):
            load(tmp_path / "nowhere")
        with pytest.raises(FileError, match=r"nowhere\.gguf does not exist"):
            load(tmp_path / "nowhere.gguf")
        with pytest.raises(FileError, match=r"acme/absent is not in the hub's cache; run `latentloom bridge fetch"):
            load(Path("acme/absent"))
        with pytest.raises(FileError, match=r"acme/absent is neither in .*missing nor in the hub's cache"):
            load(Path("acme/absent"), pretrained_local_dir=tmp_path / "missing")
