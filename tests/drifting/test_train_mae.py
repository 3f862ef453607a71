import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from latentloom.cli import drift_train_mae
from latentloom.drifting.batches import ShuffledBatches
from latentloom.drifting.config import MaeConfig
from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.mae import ADAM_NAMES, LatentMae, MaeShape, load_mae
from latentloom.drifting.optimizers import make_drift_optimizers, rate_factor
from latentloom.drifting.train_mae import (
    CURVE_FILE,
    MAE_FILE,
    STATE_FILE,
    MaeTraining,
    effective_batch,
    run_train_mae,
    train_mae,
)
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs import RunRecord, launch_processes, load_config
from latentloom.storage import read_module
from latentloom.training import read_curve, set_learning_rate

CPU = torch.device("cpu")
SMALL = {
    **{"device": "cpu", "width": 8, "stages": 2, "blocks": 1, "batch_size": 16, "steps": 6, "warmup": 2},
    **{"log_every": 2, "save_every": 3, "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(settings(), CPU)


def settings(**changes: object) -> MaeConfig:
    return MaeConfig.model_validate({**SMALL, **changes})


def distance(first: Path, second: Path) -> float:
    """The largest difference between the weights of two files."""
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_batches_go_through_all_images_pass_after_pass(num_images, batch_size, seed):
    batches = ShuffledBatches(num_images, batch_size, seed)
    steps = -(-3 * num_images // batch_size)
    rows = torch.cat([batches.rows(step) for step in range(steps)])
    for number in range(3):
        assert sorted(rows[number * num_images : (number + 1) * num_images].tolist()) == list(range(num_images))
    late = ShuffledBatches(num_images, batch_size, seed).rows(steps - 1)  # needs no history
    assert torch.equal(late, rows[(steps - 1) * batch_size :])


def test_training_lowers_the_held_out_loss_and_keeps_the_average(digits, tmp_path):
    config = settings(steps=60, lr=3e-3, save_every=30, ema_decay=0.95)
    seen = []
    path = train_mae(digits, config, tmp_path, lambda step, measures: seen.append((step, measures)))
    curve = read_curve(tmp_path / CURVE_FILE)
    held_out = [line["held_out_loss"] for line in curve if "held_out_loss" in line]
    assert held_out[-1] < held_out[0]
    assert held_out[-1] < 0.6 * curve[0]["loss"]
    assert [line["step"] for line in curve] == [step for step, _ in seen]
    assert curve[-1]["step"] == 59
    record = read_module(path).record
    assert record is not None
    assert record["held_out_loss"] == pytest.approx(held_out[-1])
    assert record["effective_batch"] == 16
    assert record["settings"]["steps"] == 60
    assert not (tmp_path / STATE_FILE).exists()
    before = path.read_bytes()
    assert train_mae(digits, config, tmp_path) == path  # finished: nothing is done again
    assert path.read_bytes() == before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_training_comes_to_the_very_same_weights(digits, tmp_path, optimizer):
    config = settings(optimizer=optimizer, grad_accum=2, classify_share=0.5)
    whole = train_mae(digits, config, tmp_path / "whole")

    def stop(step: int, measures: Mapping[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_mae(digits, config, tmp_path / "halves", stop)
    torch.manual_seed(123)  # nothing may hang on the global generator
    halves = train_mae(digits, config, tmp_path / "halves")
    assert distance(whole, halves) == 0
    losses = [[line["loss"] for line in read_curve(path.parent / CURVE_FILE)] for path in (whole, halves)]
    assert losses[0] == losses[1]


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # spawned processes take over the path
    ranks = importlib.import_module("mae_ranks")
    common = {**SMALL, "grad_accum": 2, "classify_share": 0.5, "classify_weight": 0.1}
    launch_processes(ranks.train, 2, common, str(tmp_path / "two"))
    ranks.train(0, {**common, "batch_size": 32}, str(tmp_path / "one"))
    assert distance(tmp_path / "one" / MAE_FILE, tmp_path / "two" / MAE_FILE) < 1e-5
    one, two = (read_curve(tmp_path / name / CURVE_FILE) for name in ("one", "two"))
    for alone, joined in zip(one, two, strict=True):
        assert alone["loss"] == pytest.approx(joined["loss"], abs=1e-5)


def test_accumulated_batches_are_one_large_batch(digits, tmp_path):
    once = train_mae(digits, settings(batch_size=32), tmp_path / "once")
    twice = train_mae(digits, settings(batch_size=16, grad_accum=2), tmp_path / "twice")
    assert distance(once, twice) < 1e-5


def test_labels_are_learned_in_the_tail_alone(digits):
    config = settings(steps=4, classify_share=0.5, classify_weight=1.0, weight_decay=0.0)
    training = MaeTraining(digits, config)
    assert training.mae.head is not None
    moved = []
    for _ in range(4):
        before = training.mae.head.weight.detach().clone()
        training.train_step(training.mae)
        moved.append(not torch.equal(before, training.mae.head.weight))
    assert moved == [False, False, True, True]
    assert MaeTraining(digits, settings()).mae.head is None


def test_bfloat16_computes_and_keeps_float32_weights(digits, tmp_path):
    mae = load_mae(train_mae(digits, settings(amp_bf16=True), tmp_path))
    assert {weight.dtype for weight in mae.parameters()} == {torch.float32}
    assert all(weight.isfinite().all() for weight in mae.parameters())


def test_a_folder_of_another_run_is_refused(digits, tmp_path):
    train_mae(digits, settings(), tmp_path)
    with pytest.raises(ConfigError, match=r"with lr = 0.001, not 0.01"):
        train_mae(digits, settings(lr=0.01), tmp_path)
    train_mae(digits, settings(log_every=5), tmp_path)  # changes nothing about the weights


def test_settings_that_leave_no_square_visible_are_refused(digits, tmp_path):
    with pytest.raises(ShapeError, match="mask_patch = 8"):
        train_mae(digits, settings(mask_patch=8), tmp_path)
    assert not list(tmp_path.iterdir())  # the folder is still free


def test_latents_of_odd_sizes_are_trained_on(tmp_path):
    config = settings(dataset="fake", image_size=9, fake_images=60, flip=True)
    data = load_data(config, CPU)
    mae = load_mae(train_mae(data, config, tmp_path))
    assert [tuple(values.shape[2:]) for values in mae.encode(data.held_out.load(torch.arange(2)))] == [(9, 9), (5, 5)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizers_own_each_weight_once_and_follow_the_schedule(optimizer):
    mae = LatentMae(MaeShape(channels=1, width=8, num_classes=10))
    config = settings(optimizer=optimizer, lr=0.01, muon_lr=0.02)
    optimizers = make_drift_optimizers(mae, config, ADAM_NAMES)
    groups = [group for each in optimizers for group in each.param_groups]
    sizes = sorted(weight.numel() for group in groups for weight in group["params"])
    assert sizes == sorted(weight.numel() for weight in mae.parameters())
    for group in groups:
        assert all((weight.ndim >= 2) == (group["weight_decay"] > 0) for weight in group["params"])
    by_adam = {id(weight) for group in optimizers[0].param_groups for weight in group["params"]}
    ends = [weight for name, weight in mae.named_parameters() if any(end in name for end in ADAM_NAMES)]
    assert len(ends) == 6
    assert all(id(weight) in by_adam for weight in ends)
    set_learning_rate(optimizers, 0.5)
    assert {group["lr"] for group in groups} == ({0.005} if optimizer == "adamw" else {0.005, 0.01})


def test_the_rate_rises_and_falls_or_stays():
    config = settings(steps=100, warmup=10)
    factors = [rate_factor(step, config) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == pytest.approx(1.0)
    assert factors[-1] < 0.01
    assert rate_factor(99, settings(steps=100, warmup=10, decay="constant")) == 1


def test_a_run_leaves_record_curves_and_report(tmp_path):
    config = settings(steps=8)
    weights = run_train_mae(config, tmp_path / "run")
    assert weights == tmp_path / "run" / MAE_FILE
    record = RunRecord.read(tmp_path / "run")
    assert record.status == "finished"
    assert record.seeds == [0]
    assert record.results["effective_batch"] == 16
    assert record.results["held_out_loss"] == pytest.approx(
        read_curve(tmp_path / "run" / CURVE_FILE)[-1]["held_out_loss"]
    )
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    page = (tmp_path / "run" / "report.html").read_text()
    for part in ("Held-out images", "effective_batch", "mask_ratio", "data:image/png", "data:image/svg"):
        assert part in page
    with pytest.raises(ConfigError, match="steps = 8"):
        run_train_mae(settings(steps=9), tmp_path / "run")
    assert RunRecord.read(tmp_path / "run") == record  # the earlier run's record is not touched


def test_latents_are_trained_on_and_shown(tmp_path):
    config = settings(dataset="fake", image_size=32, fake_images=40, input_space="latent", steps=2, stages=1)
    run_train_mae(config, tmp_path)
    mae = load_mae(tmp_path / MAE_FILE)
    assert mae.shape.channels == 16
    assert (tmp_path / "report.html").exists()


def test_the_command_trains_by_a_file_and_options(tmp_path):
    (tmp_path / "mae.toml").write_text("width = 8\nstages = 1\nblocks = 1\nbatch_size = 16\nsteps = 9\n")
    app = typer.Typer()
    app.command()(drift_train_mae.command)
    arguments = ["--config", str(tmp_path / "mae.toml"), "--steps", "2", "--out-dir", str(tmp_path / "run")]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "out.json")])
    assert result.exit_code == 0, result.output
    assert "effective batch 16" in result.output
    measured = json.loads((tmp_path / "out.json").read_text())
    assert measured["settings"]["steps"] == 2
    assert load_mae(Path(measured["weights"])).shape.width == 8


def test_the_recipe_has_the_effective_batch_that_it_states():
    path = Path(__file__).parents[2] / "recipes" / "8gpu_latent_mae.toml"
    config = load_config(MaeConfig, path)
    text = path.read_text()
    assert "torchrun --nproc_per_node 8 --no-python latentloom drift train-mae --config recipes/" + path.name in text
    assert 8 * effective_batch(config) == 4096
    assert config.input_space == "latent"
