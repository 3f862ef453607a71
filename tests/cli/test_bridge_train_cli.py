"""`latentloom bridge train`: trains from the document's list, resumes, plans, and says mistakes in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_backbones import write_tiny_backbone
from tiny_bridge import WORDS

from latentloom.bridge.train import BridgeTraining
from latentloom.cli.main import run
from latentloom.training.curve import read_curve

DIM = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny backbone, `backbone`, another, `other`, and 24 pairs in the document's format."""
    root = tmp_path_factory.mktemp("data")
    write_tiny_backbone(root / "backbone", "llama")
    write_tiny_backbone(root / "other", "llama", seed=1)
    write_pairs(root / "pairs.json", 24)
    return root


def write_pairs(path: Path, num: int, num_bad: int = 0) -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num):
        np.save(path.parent / f"{number}.npy", generator.normal(size=DIM).astype(np.float32))
        text = " ".join(generator.choice(WORDS, 4)) if number >= num_bad else ""
        rows.append({"text": f"{text} {number}" if text else "", "latent_path": f"{number}.npy"})
    path.write_text(json.dumps(rows))


def train(data: Path, save_dir: Path, *arguments: object) -> int:
    """Exit code of a training of six steps on the tiny backbone."""
    settings: dict[str, Any] = {
        "model.pretrained_model_name_or_path": data / "backbone",
        "model.encoder_hidden": 16,
        "model.lora.rank": 2,
        "data.train_json": data / "pairs.json",
        "data.held_out": 4,
        "training.num_steps": 6,
        "training.train_batch_size": 4,
        "training.t2l_batch_size": 4,
        "training.dtype": "fp32",
        "training.device": "cpu",
        "logging.save_dir": save_dir,
        "logging.run_name": "tiny",
        "logging.log_every": 1,
        "logging.save_every": 2,
        "evaluation.num_pairs": 3,
        "evaluation.best_of": 1,
        "evaluation.max_new_tokens": 4,
    }
    given = [f"{name}={value}" for name, value in settings.items()]
    return run(["bridge", "train", *given, *map(str, arguments)])


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that a mistake takes."""
    found = capsys.readouterr()
    assert code == 2, found.err
    (line,) = [line for line in found.err.splitlines() if line.startswith("latentloom: ")]
    assert "Traceback" not in found.err
    return line


def curve(folder: Path) -> list[dict[str, float]]:
    """A run's measures, without times."""
    return [
        {name: value for name, value in line.items() if "seconds" not in name}
        for line in read_curve(folder / "curve.jsonl")
    ]


def test_it_trains_from_a_list_and_leaves_an_export_scores_and_a_page(data: Path, tmp_path: Path, capsys: Any):
    assert train(data, tmp_path, "--json", tmp_path / "out.json") == 0
    folder = tmp_path / "tiny"
    said = capsys.readouterr().out
    assert f"export: {folder / 'checkpoint_step_6.safetensors'}" in said
    assert f"report: {folder / 'report.html'}" in said
    assert [line["step"] for line in curve(folder)] == list(range(6))
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.toml",
        "record.json",
        "metrics.json",
        "checkpoint_step_2.pt",
        "checkpoint_step_6.safetensors",
    }
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["out_dir"] == str(folder)
    assert told["scores"] == json.loads((folder / "metrics.json").read_text())


def test_an_interrupted_training_goes_on_with_the_same_command_and_makes_the_same_curve(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert train(data, tmp_path / "whole", "evaluation.num_pairs=0") == 0
    step = BridgeTraining.step

    def failing(training: BridgeTraining, number: int, measures: bool) -> dict[str, float]:
        if number == 3:
            raise RuntimeError("the machine stops")
        return step(training, number, measures)

    with monkeypatch.context() as context:
        context.setattr(BridgeTraining, "step", failing)
        with pytest.raises(RuntimeError, match="the machine stops"):
            train(data, tmp_path / "stopped", "evaluation.num_pairs=0")
    stopped = tmp_path / "stopped" / "tiny"
    assert [line["step"] for line in curve(stopped)] == [0, 1, 2]  # of which the last one was not saved
    assert train(data, tmp_path / "stopped", "evaluation.num_pairs=0") == 0
    assert curve(stopped) == curve(tmp_path / "whole" / "tiny")
    ends = [folder / "tiny" / "checkpoint_step_6.safetensors" for folder in (tmp_path / "whole", tmp_path / "stopped")]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_run_of_another_backbone_or_other_settings_is_refused(data: Path, tmp_path: Path, capsys: Any):
    assert train(data, tmp_path, "evaluation.num_pairs=0", "training.num_steps=2") == 0
    capsys.readouterr()
    code = train(data, tmp_path, f"model.pretrained_model_name_or_path={data / 'other'}", "training.num_steps=2")
    line = refusal(capsys, code)
    assert str(tmp_path / "tiny") in line
    assert "backbone" in line


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.train_json=none", "no data: set data.train_json"),
        ("data.train_json=missing.json", "missing.json"),
        ("model.pretrained_model_name_or_path=nobody/nothing", "nobody/nothing is not in the hub's cache"),
        ("model.pretrained_model_name_or_path=./no-such-folder/model", "does not exist"),
        ("model.latent_dim=7", r"12"),
        ("model.latent_dims=7", "latent_dim"),
        ("training.parallel=fsdp", "this is one; start them with torchrun"),
    ],
)
def test_a_mistake_takes_one_line(change: str, said: str, data: Path, tmp_path: Path, capsys: Any):
    line = refusal(capsys, train(data, tmp_path, change))
    assert said in line
    if change == "model.latent_dim=7":
        assert "7" in line


def test_too_many_bad_rows_are_refused_with_their_number(data: Path, tmp_path: Path, capsys: Any):
    write_pairs(tmp_path / "bad.json", 24, num_bad=3)
    line = refusal(capsys, train(data, tmp_path / "runs", f"data.train_json={tmp_path / 'bad.json'}"))
    assert "3" in line
    assert "24" in line


def plan(*arguments: object) -> int:
    given = ["--config-name", "wedlm8b_ar_bridge", "--dry-run", *arguments]
    return run(["bridge", "train", *map(str, given)])


def test_a_dry_run_plans_a_model_that_is_not_here(tmp_path: Path, capsys: Any):
    assert plan("--processes", 8, "--gpu-memory", 80, "--json", tmp_path / "plan.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("weights of the backbone") and line.endswith("8,190,735,360") for line in lines)
    assert any(line.startswith("trained, prefix") and line.endswith("53,496,836") for line in lines)
    assert lines[-1] == "fits: ddp and fsdp; recommended: ddp"
    told = json.loads((tmp_path / "plan.json").read_text())
    assert told["num_backbone"] == 8_190_735_360
    assert told["fitting"] == ["ddp", "fsdp"]
    assert told["fsdp"]["total"] < told["ddp"]["total"] < 80e9


def test_a_dry_run_refuses_what_does_not_fit(tmp_path: Path, capsys: Any):
    code = plan("--gpu-memory", 24)
    assert "GB on each GPU, and one has 24.0 GB" in refusal(capsys, code)
    code = plan("--gpu-memory", 80, "--processes", 8, "model.freeze_backbone=false", "model.lora.rank=0")
    assert "set training.parallel=fsdp" in refusal(capsys, code)


def test_options_of_a_dry_run_are_refused_without_it(data: Path, tmp_path: Path, capsys: Any):
    assert "--dry-run" in refusal(capsys, train(data, tmp_path, "--processes", 2))
