"""A training of a bridge: each task learns, a resumed one is the uninterrupted one, and processes change nothing."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tiny_bridge import losses, make_training, read_found

from latentloom.bridge.config import BridgeConfig
from latentloom.errors import CheckpointError, ConfigError
from latentloom.runs import launch_processes

TASKS = ("t2l", "l2t", "joint")
Settings = Callable[..., dict[str, Any]]


@pytest.fixture
def settings(tiny_backbone_folder: Path) -> Settings:
    """Settings on the tiny backbone, changed by section."""

    def make(model: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
        base = {"pretrained_model_name_or_path": str(tiny_backbone_folder), "encoder_hidden": 16, "prefix_hidden": 24}
        steps = {"num_steps": 8, "warmup_steps": 2, "train_batch_size": 4, "t2l_batch_size": 6, "dtype": "fp32"}
        return {"model": {**base, "lora": {"rank": 2}} | (model or {}), "training": {**steps, **training}}

    return make


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_training_makes_the_steps_of_the_uninterrupted_one(task: str, settings: Settings, tmp_path: Path):
    chosen = settings(task=task, gradient_accumulation_steps=2)
    whole = make_training(chosen, tmp_path)
    expected = [whole.step(step, measures=True) for step in range(8)]
    stopped = make_training(chosen, tmp_path)
    for step in range(3):
        stopped.step(step, measures=False)
    stopped.save(tmp_path / "state.safetensors", 3)
    torch.manual_seed(123)  # whatever else a process drew before it goes on
    resumed = make_training(chosen, tmp_path)
    assert resumed.load(tmp_path / "state.safetensors") == 3
    assert [resumed.step(step, measures=True) for step in range(3, 8)] == expected[3:]
    for mine, theirs in zip(resumed.bridge.parameters(), whole.bridge.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_two_processes_make_the_steps_of_one_with_the_doubled_batch(settings: Settings, tmp_path: Path):
    ranks = importlib.import_module("tiny_bridge")
    cases = [settings(task=task, train_batch_size=4, t2l_batch_size=6) for task in TASKS]
    # features that change with the adapter: the backbone runs in the other direction, too
    cases.append(settings({"lora": {"rank": 2, "encode": True}}, task="joint", cache_features=False))
    launch_processes(ranks.train, 2, cases, str(tmp_path))
    for case, (measures, weights) in zip(cases, read_found(tmp_path), strict=True):
        training = case["training"]
        doubled = {"train_batch_size": 8, "t2l_batch_size": 12}
        alone_measures, alone_weights = losses({**case, "training": {**training, **doubled}}, tmp_path / "alone")
        for mine, theirs in zip(measures, alone_measures, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-5)
        assert weights == pytest.approx(alone_weights, abs=1e-4, rel=1e-5)


def test_joint_learns_each_direction_as_if_alone(settings: Settings, tmp_path: Path):
    measures = {}
    for task in TASKS:
        training = make_training(settings(task=task), tmp_path)
        measures[task] = [training.step(step, measures=True) for step in range(6)]
    alone = {
        "l2t": ("text_loss", "text_acc", "gradient_norm/prefix", "gradient_norm/adapter"),
        "t2l": ("latent_loss",),
    }
    for task, names in alone.items():
        for mine, theirs in zip(measures["joint"], measures[task], strict=True):
            assert {name: mine[name] for name in names} == pytest.approx({name: theirs[name] for name in names})


def test_accumulated_batches_make_the_steps_of_one_large_batch(settings: Settings, tmp_path: Path):
    parts = make_training(settings(task="l2t", train_batch_size=4, gradient_accumulation_steps=2), tmp_path)
    whole = make_training(settings(task="l2t", train_batch_size=8), tmp_path)
    rows = sorted(parts.text_batches.batch(0) + parts.text_batches.batch(1))
    whole.text_batches.batch = lambda step, rank=0: rows
    for training in (parts, whole):
        training.config = training.config.model_copy(
            update={"model": training.config.model.model_copy(update={"unconditional_share": 0.0})}
        )
    first, second = parts.step(0, measures=True), whole.step(0, measures=True)
    assert first["text_loss"] == pytest.approx(second["text_loss"], rel=1e-6)
    assert first["gradient_norm/prefix"] == pytest.approx(second["gradient_norm/prefix"], rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_training_learns_and_moves_only_what_its_task_uses(task: str, settings: Settings, tmp_path: Path):
    training = make_training(settings(task=task, num_steps=60, lr=1e-2, schedule="constant"), tmp_path)
    before = {name: weight.detach().clone() for name, weight in training.bridge.named_parameters()}
    measures = [training.step(step, measures=True) for step in range(60)]
    name = "latent_loss" if task == "t2l" else "text_loss"
    assert sum(line[name] for line in measures[-5:]) < 0.9 * sum(line[name] for line in measures[:5])
    moved = {name for name, weight in training.bridge.named_parameters() if not torch.equal(weight, before[name])}
    parts = {name.split(".")[0] if "lora_" not in name else "lora" for name in moved}
    assert (
        parts
        == {
            "t2l": {"text_to_latent"},
            "l2t": {"latent_prefix", "lora"},
            "joint": {"latent_prefix", "text_to_latent", "lora"},
        }[task]
    )


def test_trained_parts_are_in_float32_whatever_the_backbone_computes_in(settings: Settings, tmp_path: Path):
    training = make_training(settings(dtype="bf16"), tmp_path)
    assert {weight.dtype for weight in training.bridge.parameters() if weight.requires_grad} == {torch.float32}


@pytest.mark.parametrize(
    ("model", "trained"),
    [
        ({"freeze_backbone": False, "lora": {"rank": 0}}, {"layers.0", "layers.2", "norm"}),
        ({"unfreeze_layers": 1, "lora": {"rank": 0}}, {"layers.2", "norm"}),
        ({"freeze_lm_head": False, "lora": {"rank": 0}}, set()),
    ],
)
def test_parts_of_the_backbone_can_be_trained(model: dict, trained: set[str], settings: Settings, tmp_path: Path):
    training = make_training(settings(model, task="l2t"), tmp_path)
    before = {name: weight.detach().clone() for name, weight in training.bridge.network.named_parameters()}
    for step in range(2):
        training.step(step, measures=False)
    moved = {
        name for name, weight in training.bridge.network.named_parameters() if not torch.equal(weight, before[name])
    }
    for part in ("layers.0", "layers.2", "norm"):
        assert any(f"model.{part}." in f"{name}." for name in moved) == (part in trained)
    head = training.bridge.backbone.output_weight
    assert head.requires_grad == (not model.get("freeze_lm_head", True))


def test_features_are_pooled_once_and_anew_for_other_texts_or_layers(settings: Settings, tmp_path: Path):
    def made() -> int:
        return len(list(tmp_path.glob("features-*.npy")))

    make_training(settings(task="t2l"), tmp_path)
    first = next(tmp_path.glob("features-*.npy"))
    written = first.stat().st_mtime_ns
    make_training(settings(task="t2l"), tmp_path)
    assert (made(), first.stat().st_mtime_ns) == (1, written)
    make_training(settings({"encoder_layers": [1, 2]}, task="t2l"), tmp_path)
    make_training(settings({"max_seq_len": 3}, task="t2l"), tmp_path)
    assert made() == 3


def test_cached_features_give_the_losses_of_features_pooled_in_every_step(settings: Settings, tmp_path: Path):
    same = {"task": "t2l", "train_batch_size": 4, "t2l_batch_size": 4}
    cached = make_training(settings(**same), tmp_path)
    fresh = make_training(settings(**same, cache_features=False), tmp_path)
    fresh.bridge.text_to_latent.features.load_state_dict(cached.bridge.text_to_latent.features.state_dict())
    fresh.vector_batches = cached.vector_batches
    for step in range(3):
        mine, theirs = cached.step(step, measures=True), fresh.step(step, measures=True)
        assert mine == pytest.approx(theirs, rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_training_in_one_line(settings: Settings, tmp_path: Path):
    training = make_training(settings(task="l2t"), tmp_path)
    with torch.no_grad():
        training.bridge.latent_prefix.log_scale.fill_(float("nan"))
    with pytest.raises(ConfigError, match=r"no number at step 0 .*training\.lr below"):
        training.step(0, measures=True)


def test_the_state_of_another_training_is_refused(settings: Settings, tmp_path: Path):
    training = make_training(settings(task="l2t"), tmp_path)
    training.step(0, measures=False)
    training.save(tmp_path / "state.safetensors", 1)
    with pytest.raises(CheckpointError, match="state of another run"):
        make_training(settings({"num_prefix_tokens": 3}, task="l2t"), tmp_path).load(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"freeze_backbone": False}}, "set lora.rank = 0"),
        ({"model": {"freeze_backbone": False, "lora": {"rank": 0}, "unfreeze_layers": 2}}, "unfreeze_layers has no"),
        ({"model": {"freeze_lm_head": False}, "training": {"task": "t2l"}}, "freeze_lm_head = false has no effect"),
        ({"data": {"train_json": "a.json", "texts": "b.txt"}}, "both given"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(sections: dict, said: str):
    with pytest.raises(ValidationError, match=said):
        BridgeConfig.model_validate(sections)


def test_layers_left_without_a_use_are_refused_where_they_are_trained(settings: Settings, tmp_path: Path):
    with pytest.raises(ConfigError, match="name layer 3 too"):
        make_training(
            settings({"encoder_layers": [1], "unfreeze_layers": 1, "lora": {"rank": 0}}, task="t2l"), tmp_path
        )
