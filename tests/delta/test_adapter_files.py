"""Adapters on disk: exact in both forms, and one clear line for every file that is no adapter."""

import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.delta.files import load_embdelta_adapter, read_adapter, save_adapter
from latentloom.errors import CheckpointError, CorruptFileError, FileError
from latentloom.storage import save_module

SUFFIXES = pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
RECORD = {"name": "SGD from zero", "cosine": 0.4321, "rows": [[1.0, 2.5]], "encoder": None}
shapes = st.fixed_dictionaries(
    {
        "d_model": st.integers(1, 9),
        "rank": st.integers(1, 5),
        "cap": st.sampled_from([None, 0.22, 1.5]),
        "cap_mode": st.sampled_from(["relative", "absolute"]),
        "orthogonal": st.booleans(),
        "gated": st.booleans(),
        "gate_width": st.integers(1, 4),
    }
)


@settings(max_examples=10)
@given(st.sampled_from([".safetensors", ".pt"]), shapes, st.integers(0, 2**31), st.sampled_from([None, RECORD]))
def test_saving_and_loading_is_exact(make_adapter, suffix, shape, seed, record):
    saved = make_adapter(seed, **shape)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"embdelta_adapter{suffix}"
        save_adapter(path, saved, record)
        loaded, stored = load_embdelta_adapter(path, d_model=shape["d_model"]), read_adapter(path)
    assert loaded.config == saved.config
    assert stored.record == record
    expected = saved.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor.view(torch.int32), expected[name].view(torch.int32)), name


@SUFFIXES
def test_a_loaded_adapter_is_ready_to_apply(tmp_path, make_adapter, make_prompts, suffix):
    path, saved, batch = tmp_path / f"adapter{suffix}", make_adapter(), make_prompts([3, 0, 4])
    save_adapter(path, saved)
    loaded = load_embdelta_adapter(path, map_location=torch.device("cpu"))
    path.unlink()  # nothing is left in the file
    assert torch.equal(loaded(batch).tokens, saved(batch).tokens)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@SUFFIXES
def test_both_forms_hold_plain_tensors_and_json(tmp_path, make_adapter, suffix):
    path = tmp_path / f"adapter{suffix}"
    save_adapter(path, make_adapter(), RECORD)
    if suffix == ".pt":
        stored = torch.load(path, weights_only=True)
        assert stored["class"] == "EmbeddingDelta"
        assert json.loads(stored["record"]) == RECORD
    assert read_adapter(path).config["rank"] == 4


def refused(path: Path, kind: type[FileError], match: str | None = None, d_model: int | None = None) -> None:
    with pytest.raises(kind, match=match) as error:
        load_embdelta_adapter(path, d_model)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


@SUFFIXES
def test_another_width_is_refused(tmp_path, make_adapter, suffix):
    save_adapter(tmp_path / f"a{suffix}", make_adapter())
    refused(tmp_path / f"a{suffix}", CheckpointError, "24 channels, not 4096; give the adapter of this", d_model=4096)


@SUFFIXES
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, make_adapter, suffix, share):
    path = tmp_path / f"a{suffix}"
    save_adapter(path, make_adapter(), RECORD)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    refused(path, CorruptFileError)


@SUFFIXES
def test_a_missing_file_is_refused(tmp_path, suffix):
    refused(tmp_path / f"none{suffix}", FileError)


def test_another_name_is_refused_before_anything_is_written(tmp_path, make_adapter):
    with pytest.raises(FileError, match=r"end it in \.safetensors or \.pt"):
        save_adapter(tmp_path / "adapter.bin", make_adapter())
    refused(tmp_path / "adapter.bin", FileError, r"end it in \.safetensors or \.pt")
    assert not list(tmp_path.iterdir())


class Touch:
    """What a hostile file would run while it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_pt_is_refused_and_not_run(tmp_path, make_adapter):
    path, witness = tmp_path / "a.pt", tmp_path / "ran"
    config = json.dumps(make_adapter().config.model_dump(mode="json"))
    about = {"class": "EmbeddingDelta", "config": config, "record": "null"}
    torch.save({**about, "state_dict": {"down": Touch(witness)}}, path)
    refused(path, CorruptFileError)
    path.write_bytes(pickle.dumps({"state_dict": Touch(witness)}))
    refused(path, CorruptFileError)
    assert not witness.exists()


def test_safetensors_of_something_else_are_refused(tmp_path, make_adapter):
    adapter = make_adapter()
    save_module(tmp_path / "a.safetensors", adapter.state_dict(), "LatentBridge", {"d_model": 24})
    refused(tmp_path / "a.safetensors", FileError, "holds LatentBridge; give an adapter")


@pytest.mark.parametrize(
    "content",
    [
        {"down": torch.ones(2, 2)},
        [torch.ones(2)],
        {"class": "EmbeddingDelta", "config": "{", "record": "null", "state_dict": {}},
        {"class": "EmbeddingDelta", "config": "[]", "record": "null", "state_dict": {}},
        {"class": "EmbeddingDelta", "config": "{}", "record": "3", "state_dict": {}},
        {"class": "EmbeddingDelta", "config": "{}", "record": "null", "state_dict": {"down": 3}},
        {"class": "EmbeddingDelta", "config": 3, "record": "null", "state_dict": {}},
    ],
)
def test_a_pt_of_something_else_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", FileError, "is no Embedding Delta adapter")


def edited(path: Path, adapter, tensors: dict[str, torch.Tensor], **config: object) -> None:
    """Write an adapter's file with other tensors or settings in it."""
    settings = {**adapter.config.model_dump(mode="json"), **config}
    if path.suffix == ".safetensors":
        save_module(path, tensors, "EmbeddingDelta", settings)
    else:
        about = {"class": "EmbeddingDelta", "config": json.dumps(settings), "record": "null"}
        torch.save({**about, "state_dict": tensors}, path)


@SUFFIXES
@pytest.mark.parametrize("edit", ["shape", "missing", "extra", "rank", "whole numbers"])
def test_tensors_that_are_not_those_of_the_settings_are_refused(tmp_path, make_adapter, suffix, edit):
    adapter, path = make_adapter(), tmp_path / f"a{suffix}"
    tensors = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    if edit == "shape":
        tensors["up"] = torch.zeros(24, 5)
    elif edit == "missing":
        del tensors["bias"]
    elif edit == "extra":
        tensors["tanh"] = torch.zeros(2, dtype=torch.long)
    elif edit == "whole numbers":
        tensors["up"] = torch.zeros(24, 4, dtype=torch.long)
    edited(path, adapter, tensors, **({"rank": 7} if edit == "rank" else {}))
    refused(path, CheckpointError, "holds other tensors than its settings ask for")


@SUFFIXES
@pytest.mark.parametrize("config", [{"rank": 0}, {"cap": -1.0}, {"cap_mode": "other"}, {"tanh": True}])
def test_settings_of_no_known_adapter_are_refused(tmp_path, make_adapter, suffix, config):
    path = tmp_path / f"a{suffix}"
    edited(path, make_adapter(), make_adapter().state_dict(), **config)
    refused(path, CheckpointError, f"settings of no known adapter: .*{next(iter(config))}")
