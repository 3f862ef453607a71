"""The document's command lines, under DeepSpeed's launcher and torchrun, and as launchers start each process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cache_runs import write_clips
from finetune_runs import LORA, finish, losses, printed, settings, start, the_run

from latentloom.finetune.config import FinetuneConfig
from latentloom.runs import RunRecord, to_toml

RESUME = "--resume_from_checkpoint"
BIN = Path(sys.executable).parent


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path) -> FinetuneConfig:
    """Two stages over eight clips: four steps of an epoch."""
    write_clips(tmp_path / "clips", 8)
    places = {"output_dir": str(tmp_path / "runs"), "dataset": str(tmp_path / "clips")}
    model = {"model": {"ckpt_path": str(tiny_checkpoint)}}
    return settings(LORA, places, model, {"pipeline_stages": 2, "sample_every_n_epochs": 0, "epochs": 2})


def finish_ranks(config: FinetuneConfig, folder: Path, count: int, *arguments: str) -> list[int | None]:
    """Exit codes of as many processes, each started as launchers start it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    processes = [
        start(
            config,
            folder / str(rank),
            f"--local_rank={rank}",
            "--deepspeed",
            *arguments,
            environment={**meeting, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_processes_that_a_launcher_starts_cache_train_and_resume_together(config: FinetuneConfig, tmp_path: Path):
    folder = tmp_path / "printed"
    assert finish_ranks(config, folder, 2, "--cache_only") == [0, 0], printed(folder / "0")
    assert "latents: 8 computed, 0 reused" in printed(folder / "0")
    assert printed(folder / "1").count("bucket") == 0
    assert not config.output_dir.exists()
    assert finish_ranks(config, folder, 2) == [0, 0], printed(folder / "0")
    assert "latents: 0 computed, 8 reused" in printed(folder / "0")
    run = the_run(config)
    assert len(losses(run)) == 8
    longer = config.model_copy(update={"epochs": 3})
    assert finish_ranks(longer, folder, 2, RESUME) == [0, 0], printed(folder / "0")
    assert "going on after step 8" in printed(folder / "0")
    alone = longer.model_copy(update={"pipeline_stages": 1, "output_dir": tmp_path / "alone"})
    assert finish(alone, folder) == 0, printed(folder)
    expected = [loss for _, loss in losses(the_run(alone))]
    assert [loss for _, loss in losses(run)] == pytest.approx(expected, abs=1e-5)


def test_a_number_of_processes_that_cannot_be_cut_into_stages_is_one_line(config: FinetuneConfig, tmp_path: Path):
    assert finish(config, tmp_path / "printed") == 2
    (line,) = [line for line in printed(tmp_path / "printed").splitlines() if line.startswith("latentloom: ")]
    assert "pipeline_stages = 2 does not divide 1 processes" in line
    assert "deepspeed --num_gpus=2" in line


@contextmanager
def launched(folder: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher in a process group of its own; what is left of it at the end is killed."""
    with (folder / "launcher.txt").open("w") as out:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=folder,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_launcher(folder: Path, *command: str) -> str:
    """What a launcher prints; its exit code must be 0."""
    with launched(folder, *command) as process:
        code = process.wait(timeout=240)
    text = (folder / "launcher.txt").read_text()
    assert code == 0, text
    return text


def deepspeed(config: FinetuneConfig, folder: Path, **changes: Any) -> tuple[str, ...]:
    """The document's command line."""
    (folder / "config.toml").write_text(to_toml(config.model_copy(update=changes)))
    launcher = ("deepspeed", "--num_gpus=2", f"--master_port={free_port()}")
    return (*launcher, "--module", "latentloom.finetune.train", "--deepspeed", "--config", "config.toml")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_deepspeed_launches_the_documents_command_lines(config: FinetuneConfig, tmp_path: Path) -> None:
    assert "latents: 8 computed" in run_launcher(tmp_path, *deepspeed(config, tmp_path), "--cache_only")
    assert not config.output_dir.exists()
    # SIGTERM to all of its processes at once, as schedulers send it: each training process gets it twice
    with launched(tmp_path, *deepspeed(config, tmp_path, epochs=10_000)) as process:
        end = time.monotonic() + 120
        while "step 3/" not in (tmp_path / "launcher.txt").read_text():
            assert process.poll() is None, (tmp_path / "launcher.txt").read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        run = the_run(config)
        while RunRecord.read(run).status != "interrupted" and time.monotonic() < end:
            time.sleep(0.05)
    steps = len(losses(run))
    assert [path.name for path in run.glob("global_step*")] == [f"global_step{steps}"]
    # in whole epochs, of four steps each
    epochs = steps // 4 + 1
    text = run_launcher(tmp_path, *deepspeed(config, tmp_path, epochs=epochs), RESUME)
    assert f"going on after step {steps}" in text
    assert len(losses(run)) == 4 * epochs
    text = run_launcher(tmp_path, *deepspeed(config, tmp_path, epochs=epochs), RESUME, f"{run.name}/global_step{steps}")
    assert f"going on after step {steps}" in text


@pytest.mark.slow
def test_torchrun_launches_it_as_well(config: FinetuneConfig, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(to_toml(config))
    module = ("-m", "latentloom.finetune.train", "--config", "config.toml")
    run_launcher(tmp_path, "torchrun", "--nproc_per_node=2", f"--master_port={free_port()}", *module)
    assert len(losses(the_run(config))) == 8
