"""Exports of a bridge: loaded again they are what was trained, and what cannot be used is said in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_backbones import write_tiny_backbone
from tiny_bridge import WORDS, make_training

from latentloom.bridge.checkpoint import export_bridge, load_bridge, read_export_record
from latentloom.bridge.decoding import decode
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.records import EncoderRecord
from latentloom.bridge.train import BridgeTraining
from latentloom.bridge.window_decoding import decode_in_windows
from latentloom.errors import CheckpointError, ConfigError, CorruptFileError, FileError, LatentLoomError
from latentloom.tensors import SentenceVector

TASKS = ("t2l", "l2t", "joint")
TEXTS = [" ".join(WORDS[:3]), " ".join(WORDS[5:9]), WORDS[4]]
MODELS = {
    "adapter": {},
    "no adapter": {"lora": {"rank": 0}},
    "last layer": {"unfreeze_layers": 1},
    "last layer, no adapter": {"unfreeze_layers": 1, "lora": {"rank": 0}},
    "whole backbone": {"freeze_backbone": False, "lora": {"rank": 0}},
    "whole model": {"freeze_backbone": False, "freeze_lm_head": False, "lora": {"rank": 0}},
    "output layer": {"freeze_lm_head": False},
    "adapter in both directions": {"lora": {"rank": 2, "encode": True}},
}

Train = Callable[..., BridgeTraining]


@pytest.fixture(scope="module")
def train(backbone_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """A tiny training after two steps."""

    def make(task: str = "joint", model: dict[str, Any] | None = None, kind: str = "llama") -> BridgeTraining:
        sizes = {"encoder_hidden": 16, "prefix_hidden": 24, "encoder_layers": [1, 3]}
        settings = {
            "model": {"pretrained_model_name_or_path": str(backbone_folder(kind)), **sizes, **(model or {})},
            "training": {
                **{"task": task, "num_steps": 8, "warmup_steps": 0, "lr": 1e-2, "dtype": "fp32", "device": "cpu"},
                **{"train_batch_size": 4, "t2l_batch_size": 6, "cache_features": False},
            },
        }
        training = make_training(settings, tmp_path_factory.mktemp("cache"))
        for step in range(2):
            training.step(step, measures=False)
        training.bridge.task = training.config.training.task
        return training

    return make


@pytest.fixture(scope="module")
def joint_export(train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a joint training; not to be changed."""
    return write_export(train(), tmp_path_factory.mktemp("joint"))


@pytest.fixture
def export(joint_export: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own."""
    return Path(shutil.copy(joint_export, tmp_path))


def write_export(training: BridgeTraining, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return export_bridge(folder, 2, training.bridge, training.config.training.model_dump(mode="json"))


def load(path: Path, **options: Any) -> LatentBridge:
    return load_bridge(path, device="cpu", **{"dtype": "fp32", **options})


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "llama") for name in MODELS), ("output layer", "qwen2"), ("whole model", "qwen2")]
)  # the tiny Llama's output layer is tied to its embeddings, the tiny Qwen's is not
@pytest.mark.parametrize("task", TASKS)
def test_an_export_loads_as_the_bridge_that_was_trained(train, tmp_path, task: str, name: str, kind: str) -> None:
    if task == "t2l" and not MODELS[name].get("freeze_lm_head", True):
        pytest.skip("refused by the settings")
    trained = train(task, MODELS[name], kind)
    bridge = trained.bridge
    export = write_export(trained, tmp_path / "run")
    vectors = trained.pairs.load([0, 1, 2])[1]
    ids = bridge.tokenize(TEXTS)
    for path in (export, export.with_suffix(".pt")):
        found = load(path)
        assert found.task == task
        assert not any(weight.requires_grad for weight in found.parameters())
        expected, losses = bridge.predict(bridge.pool_all(ids)), bridge.text_losses(vectors, ids).loss
        torch.testing.assert_close(found.predict(found.pool_all(ids)), expected, rtol=0, atol=0)
        torch.testing.assert_close(found.text_losses(vectors, ids).loss, losses, rtol=0, atol=0)


def test_only_what_was_trained_is_in_an_export(train, tmp_path) -> None:
    names = load_file(write_export(train("t2l"), tmp_path / "a")).keys()
    assert {name.split(".")[0] for name in names} == {"standardizer", "latent_prefix", "text_to_latent"}
    names = load_file(write_export(train("t2l", MODELS["last layer"]), tmp_path / "b")).keys()
    assert {"network.model.layers.2.self_attn.q_proj.weight", "network.model.norm.weight"} <= names
    assert not [name for name in names if "layers.1" in name or "lora" in name]
    names = load_file(write_export(train("l2t", MODELS["output layer"]), tmp_path / "c")).keys()
    assert "network.lm_head.weight" not in names  # which is the embeddings again
    assert "network.model.embed_tokens.weight" in names


def test_a_direction_that_was_not_trained_is_refused(train, tmp_path) -> None:
    speaks, listens = (load(write_export(train(task), tmp_path / task)) for task in ("l2t", "t2l"))
    vectors = SentenceVector(torch.zeros(1, 12))
    assert len(listens.encode(TEXTS)) == 3
    assert len(decode(speaks, vectors)) == 1
    with pytest.raises(CheckpointError, match="makes no vectors of texts; give one that was trained with task = 't2l'"):
        speaks.encode(TEXTS)
    for says in (decode, decode_in_windows):
        with pytest.raises(CheckpointError, match="task = 't2l' and makes no texts of vectors"):
            says(listens, vectors)


def test_the_encoder_of_the_vectors_is_stated(train, tmp_path) -> None:
    training = train()
    training.bridge.vector_encoder = EncoderRecord(name="tiny", fingerprint="0" * 16, source="/models/tiny")
    export = write_export(training, tmp_path / "run")
    assert load(export).vector_encoder == training.bridge.vector_encoder
    assert read_export_record(export.parent).encoder == training.bridge.vector_encoder


def test_a_backbone_that_moved_is_found_where_it_is_said_to_be(train, tmp_path) -> None:
    training = train()
    home, moved, other = tmp_path / "home", tmp_path / "moved", tmp_path / "other"
    shutil.copytree(training.bridge.backbone.name, moved)
    object.__setattr__(training.bridge.backbone, "name", str(home))
    training.bridge.config = training.bridge.config.model_copy(update={"pretrained_model_name_or_path": str(home)})
    export = write_export(training, tmp_path / "run")
    with pytest.raises(FileError, match="home does not exist"):
        load(export)
    found = load(export, local_dir=moved)
    assert found.backbone.name == str(home)
    torch.testing.assert_close(found.encode(TEXTS).values, training.bridge.encode(TEXTS).values, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="and the weights here are"):
        load(export, local_dir=write_tiny_backbone(other, "llama", seed=1))
    with pytest.raises(FileError, match="nowhere does not exist"):
        load(export, local_dir=tmp_path / "nowhere")


NO_BRIDGE = "is no export of a bridge; give a checkpoint_step_"
STATEMENTS: list[tuple[Any, str]] = [
    ("{cut", NO_BRIDGE),
    ("[1]", NO_BRIDGE),
    ({"kind": "latentloom.drift"}, NO_BRIDGE),
    ({"backbone": None}, r"what this version cannot read \(backbone"),
    ({"backbone": "smollm2"}, r"what this version cannot read \(backbone"),
    ({"latent_dim": None}, r"\(latent_dim"),
    ({"latent_dim": "12"}, r"\(latent_dim"),
    ({"latent_dim": 11}, "does not fit the settings that it states"),
    ({"layers": None}, r"\(layers"),
    ({"layers": []}, r"\(layers"),
    ({"layers": [9]}, "has layers 1 to 3"),
    ({"model": {"unknown": 1}}, r"\(model.unknown"),
    ({"training": {"task": "both"}}, r"\(training.task"),
    ({"training": {"dtype": "int8"}}, r"\(training.dtype"),
]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("change", "line"), STATEMENTS)
def test_what_an_export_says_wrongly_takes_one_line(export, change, line: str, suffix: str) -> None:
    stated = change
    if isinstance(change, dict):
        about = json.loads(read_export_record(export).model_dump_json()) | change
        stated = json.dumps({key: value for key, value in about.items() if value is not None})
    if suffix == ".pt":
        torch.save({"state_dict": load_file(export), "latentloom": stated}, export.with_suffix(".pt"))
    else:
        save_file(load_file(export), export, metadata={"latentloom": stated})
    with pytest.raises(LatentLoomError, match=line) as found:
        load(export.with_suffix(suffix))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": [1]}, {"state_dict": {"weight": 1}}, {}])
def test_a_torch_file_of_something_else_takes_one_line(tmp_path, content) -> None:
    torch.save(content, tmp_path / "checkpoint_step_1.pt")
    with pytest.raises(CheckpointError, match="holds no tensors of a bridge"):
        load(tmp_path)


def test_damaged_files_and_other_weights_take_one_line(export) -> None:
    with pytest.raises(ConfigError, match="dtype = 'int8'; give one of bf16, fp16, fp32"):
        load(export, dtype="int8")
    whole, weights = export.read_bytes(), load_file(export)
    about = {"latentloom": read_export_record(export).model_dump_json()}
    export.write_bytes(whole[:-100])
    with pytest.raises(CorruptFileError, match="is damaged"):
        load(export)
    name = "latent_prefix." + next(name for name in weights if name.startswith("latent_prefix.")).partition(".")[2]
    for changed in ({**weights, "extra": torch.zeros(1)}, {key: weights[key] for key in weights if key != name}):
        save_file(changed, export, metadata=about)
        with pytest.raises(CheckpointError, match="does not fit the settings that it states"):
            load(export)
