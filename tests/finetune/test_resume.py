"""A run that is stopped, killed or damaged goes on, and its losses are those of a run that was left alone."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from cache_runs import write_clips
from finetune_runs import (
    ENCODER,
    LORA,
    MemoryStore,
    checkpoints,
    finish,
    forked,
    losses,
    open_session,
    printed,
    settings,
    start,
    the_run,
    wait_for_steps,
)
from safetensors.torch import load_file

from latentloom.errors import ConfigError
from latentloom.finetune.checkpoint import Position, load_checkpoint, read_position, save_checkpoint
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.stages.processes import joined_processes
from latentloom.finetune.train import Options, run_finetune
from latentloom.runs import RunRecord

IMPORTED = bitsandbytes
"""Here once, and not in every process that is forked."""

RESUME = "--resume_from_checkpoint"
SHORT = {
    "epochs": 6,
    "warmup_steps": 5,
    "lr_scheduler": "cosine",
    "sample_every_n_epochs": 0,
    "gradient_clipping": 0.05,
    "eval_share": 0.1,
    "eval_every_n_epochs": 3,
    "save_every_n_epochs": 3,
}
TRIMS = {"caption_aug": {"enable": True, "trim_prob": 0.5, "keywords": ["red", "circle"]}}
MODES: dict[str, Mapping[str, Any]] = {
    "lora": LORA,
    "encoder": {"model": {**ENCODER["model"], **TRIMS, "text_dropout": 0.1, "text_anchor_weight": 0.1}},
}
"""Everything that draws random numbers is on: dropout, trimming, stochastic rounding."""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "clips"
    write_clips(folder, 9)
    return folder


class Runs:
    """Makes settings for short runs of the tiny checkpoint, each with a folder of its own."""

    def __init__(self, folder: Path, checkpoint: Path, clips: Path) -> None:
        self.folder, self.checkpoint, self.clips = folder, checkpoint, clips

    def settings(self, name: str, *changes: Mapping[str, Any]) -> FinetuneConfig:
        own = {"output_dir": str(self.folder / name), "dataset": str(self.clips)}
        return settings(SHORT, {"model": {"ckpt_path": str(self.checkpoint)}}, *changes, own)

    def alone(self, *changes: Mapping[str, Any]) -> Path:
        """A run with these settings that was left alone."""
        config = self.settings("alone", *changes)
        if not config.output_dir.exists():
            assert finish(config, self.folder / "alone-printed") == 0, printed(self.folder / "alone-printed")
        return the_run(config)


@pytest.fixture
def runs(tmp_path: Path, tiny_checkpoint: Path, clips: Path) -> Runs:
    return Runs(tmp_path, tiny_checkpoint, clips)


def stop(config: FinetuneConfig, folder: Path, *, after: int) -> None:
    """Start a run and ask it to stop once it has taken some steps."""
    process = start(config, folder)
    wait_for_steps(config, after)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 0, printed(folder)
    assert RunRecord.read(the_run(config)).status == "interrupted"


def same_outcome(run: Path, alone: Path) -> None:
    """Hold a run to one that was left alone: losses, evaluations, and what it made, exactly."""
    assert losses(run) == losses(alone)
    evaluations = [
        [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]
        for text in ((folder / "evaluation.jsonl").read_text() for folder in (run, alone))
    ]
    assert evaluations[0] == evaluations[1]
    made = [path.relative_to(alone) for path in sorted(alone.glob("epoch*/**/*.safetensors"))]
    assert made
    for path in made:
        tensors, expected = load_file(run / path), load_file(alone / path)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in tensors)
    assert RunRecord.read(run).status == "finished"
    assert (run / "report.html").is_file()
    assert [path.name for path in run.rglob(".*")] == []


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "AdamW8bitKahan"])
@pytest.mark.parametrize("mode", MODES)
def test_weights_and_optimizer_go_on_exactly(tmp_path: Path, tiny_checkpoint: Path, mode: str, optimizer: str) -> None:
    config = settings(MODES[mode], {"optimizer": {"type": optimizer}, "model": {"dtype": "bfloat16"}})
    facts = {"seed": 0}

    def steps(numbers: range, checkpoint: Path | None = None) -> tuple[list[float], Path]:
        with joined_processes(1, "cpu") as place:
            session = open_session(config, tiny_checkpoint, place, MemoryStore(14))
            trained = session.stage.trained
            if checkpoint is not None:
                assert read_position(checkpoint, facts) == Position(numbers.start, 1)
                load_checkpoint(checkpoint, trained, session.optimizer)
            values = []
            for step in numbers:
                session.set_rate(step)
                values.append(session.train_step(step))
            position = Position(numbers.stop, 1)
            return values, save_checkpoint(tmp_path, position, 0, True, trained, session.optimizer, facts, 2)

    def whole_and_halves() -> tuple[list[float], list[float]]:
        whole, _ = steps(range(8))
        first, checkpoint = steps(range(4))
        second, _ = steps(range(4, 8), checkpoint)
        return whole, first + second

    ((whole, halves),) = forked(1, whole_and_halves)
    assert halves == whole
    assert len(set(whole)) == 8


@pytest.mark.parametrize(
    ("mode", "optimizer"),
    [
        ("lora", "AdamW8bitKahan"),
        *(
            pytest.param(mode, optimizer, marks=pytest.mark.slow)
            for mode, optimizer in (("lora", "muon"), ("encoder", "adamw"), ("encoder", "muon"))
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(runs: Runs, mode: str, optimizer: str) -> None:
    changes = MODES[mode], {"optimizer": {"type": optimizer}}
    alone = runs.alone(*changes)
    config = runs.settings("stopped", *changes)
    stop(config, runs.folder / "printed", after=5)
    run = the_run(config)
    steps = len(losses(run))
    assert 5 <= steps < len(losses(alone))
    assert [path.name for path in run.glob("global_step*")] == [f"global_step{steps}"]
    assert finish(config, runs.folder / "printed", RESUME) == 0
    assert f"going on after step {steps}" in printed(runs.folder / "printed")
    same_outcome(run, alone)


def train_staged(config: FinetuneConfig, resumes: bool) -> list[Path]:
    return run_finetune(config, Options(resume=resumes))


def test_a_run_goes_on_with_another_number_of_stages_and_once_finished_stays_as_it_is(runs: Runs) -> None:
    alone = runs.alone(LORA)
    config = runs.settings("stages", LORA)
    stop(config, runs.folder / "printed", after=3)
    two = runs.settings("stages", LORA, {"pipeline_stages": 2})
    (run,) = forked(2, train_staged, two, True)[0]
    assert run == the_run(config)
    expected = [loss for _, loss in losses(alone)]
    assert [loss for _, loss in losses(run)] == pytest.approx(expected, abs=1e-5)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()}
    assert finish(config, runs.folder / "printed", RESUME) == 0
    assert f"{run} is finished" in printed(runs.folder / "printed")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.rglob("*") if path.is_file()} == before
    longer = runs.settings("stages", LORA, {"epochs": 7})
    assert finish(longer, runs.folder / "printed", RESUME) == 0
    assert len(losses(run)) == 7 * len(losses(alone)) / 6


EVERY_STEP = {"checkpoint_every_n_steps": 1, "checkpoints_kept": 3, "max_steps": 5, "epochs": 9, "eval_share": 0.0}


@pytest.fixture
def kept(runs: Runs) -> tuple[FinetuneConfig, Path]:
    """A finished run of five steps with the checkpoints of the last three."""
    config = runs.settings("kept", LORA, EVERY_STEP)
    assert finish(config, runs.folder / "printed") == 0, printed(runs.folder / "printed")
    run = the_run(config)
    assert checkpoints(run) == [3, 4, 5]
    return config.model_copy(update={"max_steps": 6}), run


def refused(config: FinetuneConfig, folder: Path, *arguments: str) -> str:
    """The one line that the training command ends with, exit code 2."""
    assert finish(config, folder, *arguments) == 2, printed(folder)
    (line,) = [line for line in printed(folder).splitlines() if line.startswith("latentloom: ")]
    assert "Traceback" not in printed(folder)
    return line


def test_a_checkpoint_can_be_named_and_later_ones_go(runs: Runs, kept: tuple[FinetuneConfig, Path]) -> None:
    config, run = kept
    before = losses(run)
    folder = runs.folder / "printed"
    assert finish(config, folder, RESUME, f"{run.name}/global_step3") == 0
    assert "going on after step 3" in printed(folder)
    assert losses(run)[:5] == before
    assert len(losses(run)) == 6
    assert checkpoints(run) == [4, 5, 6]
    line = refused(config, folder, RESUME, "20200101-000000-lora")
    assert "no run '20200101-000000-lora'" in line
    assert run.name in line
    assert "no checkpoint" in refused(config, folder, RESUME, f"{run.name}/global_step77")
    started = finish(config, folder, RESUME, run.name)
    assert started == 0
    assert "is finished" in printed(folder)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer": {"type": "muon"}}, "optimizer.type"),
        ({"seed": 1}, "seed"),
        ({"adapter": {"rank": 8}}, "adapter.rank"),
        ({"adapter": {"train_blocks_range": [1, 1]}}, "adapter.train_blocks_range"),
        ({"micro_batch_size_per_gpu": 4, "image_micro_batch_size_per_gpu": 2}, "clips per step"),
    ],
)
def test_settings_that_contradict_a_checkpoint_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, change: Mapping[str, Any], key: str
) -> None:
    def identity(saves: bool, *changes: Mapping[str, Any]) -> dict[str, Any]:
        with joined_processes(1, "cpu") as place:
            session = open_session(settings(LORA, *changes), tiny_checkpoint, place, MemoryStore(9))
            trained, optimizer = session.stage.trained, session.optimizer
            if saves:
                save_checkpoint(tmp_path, Position(1, 1), 0, True, trained, optimizer, session.identity, 1)
            return session.identity

    (same,), (other,) = forked(1, identity, True), forked(1, identity, False, change)
    assert read_position(tmp_path / "global_step1", same) == Position(1, 1)
    with pytest.raises(ConfigError, match=key) as refusal:
        read_position(tmp_path / "global_step1", other)
    assert "\n" not in str(refusal.value)


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(runs: Runs, kept: tuple[FinetuneConfig, Path]) -> None:
    config, run = kept
    folder = runs.folder / "printed"
    before = losses(run)
    truncate(run / "global_step5" / "stage_0.safetensors", 100)
    (run / "global_step4" / "state.json").write_text('{"step": 4')
    for number, file in ((5, "stage_0.safetensors"), (4, "state.json")):
        line = refused(config, folder, RESUME, f"{run.name}/global_step{number}")
        assert f"global_step{number}" in line
        assert f"damaged: {file}" in line
    assert finish(config, folder, RESUME) == 0
    told = [line for line in printed(folder).splitlines() if "going on from global_step3" in line]
    assert len(told) == 2
    assert losses(run)[:5] == before
    assert checkpoints(run) == [4, 5, 6]
    for path in run.glob("global_step*"):
        truncate(path / "stage_0.safetensors", 5)
    line = refused(config.model_copy(update={"max_steps": 7}), folder, RESUME)
    assert f"no checkpoint of {run} can be read" in line


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def kill_and_resume(runs: Runs, num_kills: int, seed: int) -> None:
    """Hold a run that is killed at random moments, of caching, training, saving and exporting, to one that is not."""
    num_steps = 10 * num_kills  # so that no kill comes after the end
    changes = LORA, EVERY_STEP, {"max_steps": num_steps, "epochs": 99, "eval_share": 0.1, "save_every_n_epochs": 1}
    alone = runs.alone(*changes)
    shutil.copytree(runs.clips, runs.folder / "own" / "clips", ignore=shutil.ignore_patterns("cache"))
    config = runs.settings("killed", *changes).model_copy(update={"dataset": runs.folder / "own" / "clips"})
    folder, draw = runs.folder / "printed", random.Random(seed)
    for number in range(num_kills):
        process = start(config, folder, RESUME)
        if number % 2:
            time.sleep(draw.uniform(0.05, 1.0))
        else:  # where most is written: around a step's checkpoint
            done = len(losses(the_run(config))) if list(config.output_dir.glob("*/loss.jsonl")) else 0
            wait_for_steps(config, done + 2)
            time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, printed(folder)
    assert finish(config, folder, RESUME) == 0, printed(folder)
    run = max(config.output_dir.glob("*/record.json")).parent
    same_outcome(run, alone)
    assert checkpoints(run) == [num_steps - 2, num_steps - 1, num_steps]
    assert not [path for path in (runs.folder / "own" / "clips").rglob("*") if ".partial" in path.name]


def test_a_killed_run_goes_on(runs: Runs) -> None:
    kill_and_resume(runs, 2, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_killed_ten_times_goes_on(runs: Runs, seed: int) -> None:
    kill_and_resume(runs, 10, seed=seed)


def test_resuming_without_a_run_starts_one(runs: Runs) -> None:
    config = runs.settings("none", LORA, {"max_steps": 1})
    (config.output_dir / "20300101-000000-lora-high_noise").mkdir(parents=True)
    (config.output_dir / "20300101-000000-lora-high_noise" / "record.json").write_text("{}")
    assert finish(config, runs.folder / "printed", RESUME) == 0, printed(runs.folder / "printed")
    assert len(list(config.output_dir.glob("*-lora/record.json"))) == 1
