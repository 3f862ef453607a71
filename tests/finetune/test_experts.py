"""Of two experts each is trained inside its own noise range, and its files say which it is."""

import json
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_runs import write_clips
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from finetune_runs import LORA, MemoryStore, finish, forked, losses, printed, settings, start

from latentloom.finetune.adapter_files import read_adapter
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.session import make_session
from latentloom.finetune.stages.processes import joined_processes
from latentloom.runs import RunRecord
from latentloom.wan.checkpoints import load_transformer
from latentloom.wan.pipeline import facts_of

SHORT = {"epochs": 2, "sample_every_n_epochs": 0}
RESUME = "--resume_from_checkpoint"


@pytest.fixture(scope="module")
def two_experts(
    tiny_checkpoint: Path, tiny_low_expert: WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint with a low-noise expert, declared to be T2V-A14B."""
    root = tmp_path_factory.mktemp("experts") / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    tiny_low_expert.save_pretrained(root / "transformer_2")
    index = json.loads((root / "model_index.json").read_text())
    index["latentloom"] = {"model": "t2v-a14b"}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small clips, where the model's own size would be 720p."""
    folder = tmp_path_factory.mktemp("experts") / "clips"
    write_clips(folder, 6)
    dataset = folder.with_suffix(".toml")
    dataset.write_text(f'resolutions = [48]\nframe_buckets = [1, 9]\n[[directory]]\npath = "{folder}"\n')
    return dataset


@pytest.fixture
def config(tmp_path: Path, two_experts: Path, clips: Path) -> FinetuneConfig:
    places = {"output_dir": str(tmp_path / "runs"), "dataset": str(clips)}
    return settings(SHORT, LORA, places, {"model": {"ckpt_path": str(two_experts), "experts": "both"}})


def with_experts(config: FinetuneConfig, experts: str | None) -> FinetuneConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"experts": experts})})


def what_is_trained(config: FinetuneConfig, root: Path, expert: str) -> dict[str, Any]:
    """The frozen weights, and the timesteps of ten steps."""
    with joined_processes(1, "cpu") as place:
        session = make_session(config, root, facts_of(root), expert, place, MemoryStore(8))
        timesteps = []
        for step in range(10):
            for inputs, _ in session.maker.training(session.plan, step, 10):
                timesteps += session.maker.wiring.given.unpack(inputs)["timestep"].tolist()
        frozen = dict(session.stage.transformer.named_parameters())
        return {"timesteps": timesteps, "weight": frozen["blocks.0.ffn.net.0.proj.weight"].detach().clone()}


@pytest.mark.parametrize(("expert", "low", "high"), [("high", 875, 1000), ("low", 0, 875)])
def test_an_expert_sees_its_own_noise_levels(
    config: FinetuneConfig, two_experts: Path, expert: str, low: float, high: float
) -> None:
    (trained,) = forked(1, what_is_trained, config, two_experts, expert)
    assert len(trained["timesteps"]) == 20
    assert all(low <= timestep <= high for timestep in trained["timesteps"])
    own = load_transformer(two_experts, expert).state_dict()["blocks.0.ffn.net.0.proj.weight"]
    other = load_transformer(two_experts, {"high": "low", "low": "high"}[expert]).state_dict()
    assert torch.equal(trained["weight"], own)
    assert not torch.equal(own, other["blocks.0.ffn.net.0.proj.weight"])


def runs_of(config: FinetuneConfig) -> Mapping[str, Path]:
    """The finished runs, by expert."""
    found = [record.parent for record in sorted(config.output_dir.glob("*/record.json"))]
    assert all(RunRecord.read(run).status == "finished" for run in found)
    return {run.name.removesuffix("_noise").rpartition("-")[2]: run for run in found}


@pytest.mark.parametrize("expert", ["high", "low"])
def test_one_expert_leaves_files_with_its_name(config: FinetuneConfig, tmp_path: Path, expert: str) -> None:
    assert finish(with_experts(config, expert), tmp_path / "printed") == 0, printed(tmp_path / "printed")
    runs = runs_of(config)
    assert list(runs) == [expert]
    epoch = runs[expert] / "epoch2"
    assert sorted(path.name for path in epoch.iterdir()) == [
        f"adapter_model_{expert}_noise.safetensors",
        f"{expert}_noise",
    ]
    assert read_adapter(epoch / f"{expert}_noise" / "adapter_model.safetensors").keys() == {
        f"blocks.{block}.cross_attn.{part}" for block in (0, 1) for part in "kv"
    }


def test_both_experts_are_trained_one_after_the_other_and_resumed_as_a_pair(
    config: FinetuneConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "printed"
    assert finish(config, folder) == 0, printed(folder)
    first = runs_of(config)
    assert list(first) == ["high", "low"]
    assert losses(first["high"]) != losses(first["low"])
    time.sleep(1)  # runs are told apart by the second in which they began
    longer = config.model_copy(update={"epochs": 40})
    process = start(longer, folder)
    while "step 2/" not in printed(folder):
        assert process.is_alive(), printed(folder)
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0, printed(folder)
    # it did not begin with the other expert
    assert len(list(config.output_dir.glob("*-low_noise*"))) == 1
    assert finish(config.model_copy(update={"epochs": 3}), folder, RESUME) == 0, printed(folder)
    high, low = (sorted(config.output_dir.glob(f"*-{expert}_noise*")) for expert in ("high", "low"))
    assert len(high) == len(low) == 2  # the older run of the low-noise expert belongs to the older pair
    assert losses(first["low"]) == losses(low[1])[: len(losses(first["low"]))]
    assert len(losses(high[1])) == len(losses(low[1])) == 9
    again = config.model_copy(update={"epochs": 4})
    assert finish(again, folder, RESUME, first["low"].name) == 0, printed(folder)
    assert len(losses(first["low"])) == 12
    assert len(losses(first["high"])) == 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"experts": None}, r'model\.experts to "high", "low" or "both"'),
        ({"experts": "low", "first_frame_prob": 0.5}, r"model\.first_frame_prob"),
        ({"experts": "low", "min_t": 0.9}, r"model\.min_t"),
    ],
)
def test_what_two_experts_cannot_do_is_one_line(
    config: FinetuneConfig, tmp_path: Path, changes: Mapping[str, Any], told: str
) -> None:
    model = config.model.model_copy(update=changes)
    assert finish(config.model_copy(update={"model": model}), tmp_path / "printed") == 2
    lines = [line for line in printed(tmp_path / "printed").splitlines() if line.startswith("latentloom: ")]
    assert len(lines) == 1
    assert re.search(told, lines[0])
    assert "Traceback" not in printed(tmp_path / "printed")
