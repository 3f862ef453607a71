"""A bridge with sharded layers: the steps of one process, its state resumed exactly, and an export for one process."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_bridge import make_training

from latentloom.bridge.checkpoint import load_bridge
from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.sharding import require_shardable
from latentloom.errors import ConfigError
from latentloom.runs import launch_processes
from latentloom.training import TrainedWeights

#: Whole backbone, last layer, adapter; both directions at once pass twice through the backbone before one backward.
CASES = {
    "everything is trained": ({"freeze_backbone": False, "freeze_lm_head": False, "lora": {"rank": 0}}, "l2t", "fp32"),
    "the last layer is trained": ({"unfreeze_layers": 1, "lora": {"rank": 0}}, "joint", "fp32"),
    "everything is trained in both directions": ({"freeze_backbone": False, "lora": {"rank": 0}}, "joint", "fp32"),
    "an adapter and frozen weights in bfloat16": ({"lora": {"rank": 2}}, "l2t", "bf16"),
}


@pytest.fixture(scope="module")
def settings(backbone_folder: Callable[[str], Path]) -> Callable[..., dict[str, Any]]:
    def make(model: dict[str, Any], task: str, dtype: str, **training: Any) -> dict[str, Any]:
        base = {"pretrained_model_name_or_path": str(backbone_folder("qwen3")), "encoder_hidden": 16}
        steps = {"num_steps": 5, "warmup_steps": 2, "train_batch_size": 4, "t2l_batch_size": 6, "dtype": dtype}
        common = {"task": task, "cache_features": False, "gradient_accumulation_steps": 2}
        return {"model": {**base, "prefix_hidden": 24, **model}, "training": {**steps, **common, **training}}

    return make


@pytest.fixture(scope="module")
def found(settings: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """What two processes with sharded layers measured, case by case, and the folder of their exports."""
    folder = tmp_path_factory.mktemp("sharded")
    cases = [settings(*case, parallel="fsdp") for case in CASES.values()]
    launch_processes(importlib.import_module("sharded_bridge").train_sharded, 2, cases, str(folder))
    return folder, json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_shards_make_the_steps_of_one_with_the_doubled_batch(
    case: str, found: tuple[Path, list[Any]], settings: Callable[..., dict[str, Any]], tmp_path: Path
):
    number, dtype = list(CASES).index(case), CASES[case][2]
    mine = found[1][number]
    alone = make_training(settings(*CASES[case], train_batch_size=8, t2l_batch_size=12), tmp_path)
    exact = dtype == "fp32"  # bfloat16 rounds at other places: shards are gathered in it
    for step, measures in enumerate(mine["measures"]):
        close = 1e-5 if exact else 2e-2
        assert measures == pytest.approx(alone.step(step, measures=True), abs=close, rel=close)
    exported = load_bridge(found[0] / str(number), device="cpu", dtype=dtype).state_dict()
    state = TrainedWeights(alone.bridge).state_dict()
    assert len(state) == mine["num_trained"]
    for name, weight in state.items():
        close = 1e-4 if exact else 2e-2
        torch.testing.assert_close(exported[name], weight, atol=close, rtol=close)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_sharded_training_is_the_uninterrupted_one(case: str, found: tuple[Path, list[Any]]):
    mine = found[1][list(CASES).index(case)]
    assert mine["resumed"] == mine["measures"][2:]
    assert mine["is_same"]


def test_each_process_holds_half_of_every_layer(found: tuple[Path, list[Any]]):
    assert [case["share_here"] for case in found[1]] == pytest.approx([0.5] * len(CASES), abs=0.01)


def test_gradients_whole_and_sharded_are_clipped_as_one_vector(found: tuple[Path, list[Any]]):
    clipped = json.loads((found[0] / "clipped.json").read_text())
    assert clipped["norm"] == pytest.approx(clipped["expected"], rel=1e-6)
    assert clipped["difference"] < 1e-7


def test_one_process_has_nothing_to_shard_over():
    with pytest.raises(ConfigError, match=r"this is one; start them with torchrun"):
        require_shardable(BridgeConfig.model_validate({"training": {"parallel": "fsdp"}}))
