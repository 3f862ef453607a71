"""`latentloom finetune`: what it takes, what it leaves behind, and mistakes as one line."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cache_runs import write_clips
from finetune_runs import LORA, checkpoints, finish, losses, printed, run_forked, settings, the_run

from latentloom.cli.main import run
from latentloom.finetune.config import FinetuneConfig
from latentloom.runs import to_toml


@pytest.fixture
def config(tmp_path: Path, tiny_checkpoint: Path) -> FinetuneConfig:
    write_clips(tmp_path / "clips", 4)
    places = {"output_dir": str(tmp_path / "runs"), "dataset": str(tmp_path / "clips")}
    return settings(LORA, places, {"model": {"ckpt_path": str(tiny_checkpoint)}}, {"sample_every_n_epochs": 0})


@pytest.fixture
def file(tmp_path: Path, config: FinetuneConfig) -> Path:
    (tmp_path / "config.toml").write_text(to_toml(config))
    return tmp_path / "config.toml"


def finetune(folder: Path, *arguments: object) -> tuple[int | None, str]:
    """Exit code of the command in a forked process, and all that it printed."""
    out = folder / "output.txt"
    code = run_forked(_run, out, ["finetune", *map(str, arguments)])
    return code, out.read_text()


def _run(arguments: list[str]) -> None:
    raise SystemExit(run(arguments))


def refusal(folder: Path, *arguments: object) -> str:
    code, text = finetune(folder, *arguments)
    assert code == 2, text
    (line,) = [line for line in text.splitlines() if line.startswith("latentloom: ")]
    assert "Traceback" not in text
    return line


def test_it_trains_and_says_where_the_report_is(tmp_path: Path, config: FinetuneConfig, file: Path) -> None:
    told = tmp_path / "told.json"
    code, text = finetune(tmp_path, "--config", file, "epochs=2", "--json", told)
    assert code == 0, text
    folder = the_run(config)
    assert f"report: {folder / 'report.html'}" in text
    assert json.loads(told.read_text()) == {"runs": [str(folder)]}
    assert {path.name for path in folder.iterdir()} >= {"config.toml", "record.json", "epoch1", "epoch2", "report.html"}
    assert (folder / "epoch2" / "adapter_model.safetensors").is_file()
    # both spellings of an option, and an option without its value before a setting
    code, text = finetune(tmp_path, "--config", file, "--resume_from_checkpoint", "epochs=3")
    assert code == 0, text
    assert len(losses(folder)) == 6
    code, text = finetune(tmp_path, "epochs=4", "--config", file, "--resume-from-checkpoint", folder.name)
    assert code == 0, text
    assert len(losses(folder)) == 8


def test_cache_only_makes_the_cache_and_no_run(tmp_path: Path, config: FinetuneConfig, file: Path) -> None:
    code, text = finetune(tmp_path, "--config", file, "--cache_only")
    assert code == 0, text
    assert "latents: 4 computed" in text
    assert (config.dataset / "cache").is_dir()
    assert not config.output_dir.exists()
    code, text = finetune(tmp_path, "--config", file, "--cache-only", "--trust-cache")
    assert "latents: 0 computed, 4 reused" in text


def test_mistakes_are_one_line(tmp_path: Path, file: Path) -> None:
    (tmp_path / "in the way").write_text("a file")
    (tmp_path / "empty").mkdir()
    cases: Mapping[tuple[object, ...], str] = {
        ("--config", tmp_path / "none.toml"): "none.toml",
        (): "--config",
        ("--config", file, f"output_dir={tmp_path / 'in the way'}"): "in the way",
        ("--config", file, f"dataset={tmp_path / 'nowhere'}"): "nowhere",
        ("--config", file, f"dataset={tmp_path / 'empty'}"): "empty",
        ("--config", file, f"model.ckpt_path={tmp_path / 'empty'}"): "empty",
        ("--config", file, "epoch=2"): "epochs",
        ("--config", file, "pipeline_stages=2"): "pipeline_stages",
        ("--config", file, "adapter.targets=['self_attn.q']"): "allow_self_attn",
        ("--config", file, "adapter.train_blocks_range=[0, 31]"): "train_blocks_range",
        ("--config", file, "--trust-cache", "--regenerate-cache"): "regenerate_cache",
        ("--config", file, "--resume-from-checkpoint", "20200101-000000-lora"): "20200101-000000-lora",
        ("--config", file, "device=cuda"): "cuda",
    }
    for arguments, told in cases.items():
        if told == "cuda" and torch.cuda.is_available():
            continue
        assert told in refusal(tmp_path, *arguments), arguments
    assert not list((tmp_path / "runs").glob("*"))


def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path: Path, config: FinetuneConfig) -> None:
    folder = tmp_path / "printed"
    every_step: dict[str, Any] = {"checkpoint_every_n_steps": 1, "save_every_n_epochs": 9, "epochs": 9}
    config = config.model_copy(update=every_step)
    assert finish(config.model_copy(update={"max_steps": 3}), folder) == 0, printed(folder)
    run = the_run(config)
    size = (run / "global_step3" / "stage_0.safetensors").stat().st_size
    longer = config.model_copy(update={"max_steps": 6})
    assert finish(longer, folder, "--resume_from_checkpoint", largest_file=size - 100) == 2, printed(folder)
    (line,) = [line for line in printed(folder).splitlines() if line.startswith("latentloom: ")]
    assert "too large" in line
    assert str(config.output_dir) in line
    assert "Traceback" not in printed(folder)
    assert checkpoints(run) == [2, 3]
    assert finish(longer, folder, "--resume_from_checkpoint") == 0, printed(folder)
    assert [step for step, _ in losses(run)] == list(range(6))
    assert not list(run.glob(".*"))
