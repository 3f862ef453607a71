"""Whole runs: what they leave, what a second call repeats, what is refused, and how a killed one goes on."""

import json
import signal
import subprocess
import sys
from shutil import copytree

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.frozen_encoder import make_encoder
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.drifting.refiner_files import load_refiner
from latentloom.drifting.run import Outcome, run_drift
from latentloom.drifting.train import CURVE_NAME, STATE_NAME, saved_step
from latentloom.drifting.train_images import train_refiner
from latentloom.drifting.trainings import REFINER_NAME
from latentloom.errors import ConfigError, CorruptFileError, LatentLoomError
from latentloom.runs import RunRecord, load_config, to_toml
from latentloom.training import read_curve

CPU = torch.device("cpu")
TINY = {
    **{"device": "cpu", "dataset": "fake", "image_size": 8, "fake_classes": 3, "fake_images": 36, "patch_size": 2},
    **{"width": 16, "depth": 1, "num_heads": 2, "steps": 3, "warmup": 1, "log_every": 1, "save_every": 2},
    **{"n_classes_step": 2, "n_gen_per_class": 3, "drift_n_pos": 4, "queue_pos": 6, "drift_n_unc": 4, "queue_unc": 12},
    **{"feature_loss_weight": 0.0, "vanilla_loss_weight": 1.0},
}


def settings(**changes):
    return DriftConfig.model_validate({**TINY, **changes})


def finished(config, folder):
    outcome = run_drift(config, folder)
    assert isinstance(outcome, Outcome)
    return outcome


def written(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def trained_alone(config, seed, folder):
    """The refiner of one training, without the run around it."""
    return train_refiner(load_data(config, CPU), None, config, seed, folder, CPU).network


def same_weights(path, network):
    for name, weight in load_file(path).items():
        assert torch.equal(weight, network.get_parameter(name))


def refuses(config, folder, kind=LatentLoomError):
    """The line that a run is refused with; nothing in its folder changes."""
    before = written(folder)
    with pytest.raises(kind) as raised:
        run_drift(config, folder)
    assert written(folder) == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder and the outcome of a run with a baseline; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "drift"
    return folder, finished(settings(mse_baseline=True), folder)


def test_a_run_leaves_its_files_record_and_report(run):
    folder, outcome = run
    for name in ("drift", "mse"):
        part = folder / f"seed0-{name}"
        assert sorted(path.name for path in part.iterdir()) == [CURVE_NAME, REFINER_NAME]
        refiner, config = load_refiner(part / REFINER_NAME)
        assert config.objective == name
        assert refiner.keypatches.counts == (4,)
        assert [line["step"] for line in read_curve(part / CURVE_NAME)] == [0, 1, 2]
        assert "eval/fd" in read_curve(part / CURVE_NAME)[-1]
    record = RunRecord.read(folder)
    assert (record.status, record.seeds) == ("finished", [0])
    assert record.decision == outcome.decision
    assert load_config(DriftConfig, folder / "config.toml") == settings(mse_baseline=True)
    assert list((folder / "tensorboard").iterdir())
    assert record.throughput["images"] == pytest.approx(2 * 3 * 6 / (record.seconds or 0), rel=0.01)
    page = (folder / "report.html").read_text()
    for part in ("IDW interpolation", "harmonic interpolation", "MSE refiner", "drifting refiner", "data:image/png"):
        assert part in page


def test_metrics_have_every_method_with_its_interval(run):
    folder, outcome = run
    measured = json.loads((folder / "metrics.json").read_text())
    methods = ["IDW interpolation", "harmonic interpolation", "MSE refiner", "drifting refiner"]
    assert list(outcome.scores) == methods
    for name in (*methods, "real images"):
        for key in ("fd", "kid", "accuracy"):
            figure = measured[name][key]
            assert figure["low"] <= figure["high"], (name, figure)
    assert measured["effective_batch"] == 6
    assert measured["processes"] == 1
    assert measured["decision"] == outcome.decision


def test_a_second_call_repeats_no_training_and_comes_to_the_same_figures(run):
    folder, outcome = run
    weights = {path: path.stat().st_mtime_ns for path in folder.glob("seed*/*")}
    again = finished(settings(mse_baseline=True), folder)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("seed*/*")} == weights
    assert again.results == outcome.results
    assert RunRecord.read(folder).throughput["images"] == 0


def test_a_further_seed_is_trained_beside_the_finished_one(run, tmp_path):
    copytree(run[0], tmp_path / "run")
    first, second = (tmp_path / "run" / f"seed{seed}-drift" / REFINER_NAME for seed in (0, 1))
    before = first.stat().st_mtime_ns
    outcome = finished(settings(seeds=(0, 1), eval_alpha=2.0, log_every=2), tmp_path / "run")
    assert first.stat().st_mtime_ns == before
    assert outcome.results["drifting refiner"]["num_seeds"] == 2
    assert not torch.equal(load_file(first)["position"], load_file(second)["position"])
    same_weights(second, trained_alone(settings(), 1, tmp_path / "alone"))  # a seed does not hang on the others


def test_other_settings_in_the_same_folder_are_refused(run):
    folder, _ = run
    assert "holds a run with steps = 3, not 4" in refuses(settings(steps=4), folder, ConfigError)
    assert "n_classes_step = 2, not 1" in refuses(settings(n_classes_step=1), folder, ConfigError)
    assert "fake_images" in refuses(settings(fake_images=48), folder, ConfigError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_size": 9}, "patch_size = 2 does not divide 9x9"),
        ({"min_key_patches": 16}, "16"),
        ({"fake_images": 3}, "images"),
        ({"dataset": "imagefolder", "data_root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"dataset": "latents", "data_root": "/nowhere", "input_space": "latent", "image_size": None}, "/nowhere"),
        ({"feature_loss_weight": 1.0, "feature_space": "mae", "feature_checkpoint": "/nowhere.safetensors"}, "/now"),
        ({"feature_loss_weight": 1.0, "feature_space": "resnet", "feature_checkpoint": "/nowhere"}, "/nowhere"),
        ({"input_space": "latent", "image_size": 20}, "image_size = 20"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"idw_power": 1e9}, "power"),
        ({"patch_size": 8}, "patch_size = 8 makes one patch"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, changes, said):
    folder = tmp_path / "run"
    folder.mkdir()
    assert said in refuses(settings(**changes), folder)
    assert list(folder.iterdir()) == []


def test_an_autoencoder_of_other_channels_is_refused(tmp_path):
    path = tmp_path / "mae.safetensors"
    save_mae(path, LatentMae(MaeShape(channels=16, width=4, stages=1, blocks=1)), {})
    folder = tmp_path / "run"
    folder.mkdir()
    config = settings(feature_loss_weight=1.0, feature_space="mae", feature_checkpoint=path)
    assert "reads 16 channels, and the images have 3" in refuses(config, folder, ConfigError)
    path.write_text("no tensors")
    assert str(path) in refuses(config, folder)
    assert list(folder.iterdir()) == []


def test_an_autoencoder_that_is_not_given_is_trained_once(tmp_path):
    config = settings(feature_loss_weight=1.0, vanilla_loss_weight=0.0, feature_space="mae", feature_mae_steps=2)
    data = load_data(config, CPU)
    encoder = make_encoder(config, data, tmp_path, CPU)
    assert encoder is not None
    (weights,) = tmp_path.glob("*.safetensors")
    before = weights.stat().st_mtime_ns
    again = make_encoder(config, data, tmp_path, CPU)
    assert again is not None
    assert weights.stat().st_mtime_ns == before
    samples = data.held_out.load(torch.arange(2))
    for one, other in zip(encoder(samples), again(samples), strict=True):
        assert torch.equal(one, other)
    assert make_encoder(settings(), data, tmp_path / "none", CPU) is None  # nothing compares features
    assert not (tmp_path / "none").exists()


def test_images_of_one_class_are_refined_without_a_judge(tmp_path):
    (tmp_path / "images" / "only").mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (8, 8), (number * 30, 90, 0)).save(tmp_path / "images" / "only" / f"{number}.png")
    changes = {"dataset": "imagefolder", "data_root": tmp_path / "images", "mse_baseline": True}
    outcome = finished(settings(**changes), tmp_path / "run")
    assert outcome.scores == {}
    assert "one class" in outcome.decision
    assert "eval/mse_all" in read_curve(tmp_path / "run" / "seed0-drift" / CURVE_NAME)[-1]
    assert "data:image/png" in (tmp_path / "run" / "report.html").read_text()
    # as many images, but one of them is another: the record would speak of data that the weights have not seen
    Image.new("RGB", (8, 9), (1, 2, 3)).save(tmp_path / "images" / "only" / "3.png")
    assert "with images =" in refuses(settings(**changes), tmp_path / "run", ConfigError)


def test_latents_are_refined_in_the_features_of_a_latent_autoencoder(tmp_path):
    path = tmp_path / "mae.safetensors"
    save_mae(path, LatentMae(MaeShape(channels=16, width=4, stages=1, blocks=1)), {})
    changes = {"input_space": "latent", "image_size": 32, "feature_space": "latent_mae", "feature_checkpoint": path}
    latents = {**changes, "feature_loss_weight": 1.0, "latent_cache": tmp_path / "latents.safetensors", "steps": 1}
    outcome = finished(settings(**latents), tmp_path / "run")
    refiner, _ = load_refiner(tmp_path / "run" / "seed0-drift" / REFINER_NAME)
    assert refiner.keypatches.shape == (16, 4, 4)
    assert outcome.results["drifting refiner"]["num_images"] == 12
    assert (tmp_path / "latents.safetensors").exists()


KILLED_AT_ITS_SECOND_CHECKPOINT = """
import os, signal, sys

num_written = 0


def kill(event, arguments):
    global num_written
    if event == "os.rename" and os.fspath(arguments[1]).endswith("state.safetensors"):
        num_written += 1
        if num_written == 2:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(kill)
from latentloom.cli.main import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_killed_run_goes_on_to_the_very_same_end(tmp_path):
    config = settings(steps=8)
    (tmp_path / "drift.toml").write_text(to_toml(config))
    command = ["drift", "train", "--config", str(tmp_path / "drift.toml"), "--out-dir", str(tmp_path / "killed")]
    state = tmp_path / "killed" / "seed0-drift" / STATE_NAME
    # it kills itself while a checkpoint is written: a test that waits for the file may come when all steps are done
    done = subprocess.run([sys.executable, "-c", KILLED_AT_ITS_SECOND_CHECKPOINT, *command], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not state.with_name(REFINER_NAME).exists()
    assert saved_step(state) == 2  # of the first checkpoint; the second did not get its name
    finished(config, tmp_path / "killed")
    record = RunRecord.read(tmp_path / "killed")
    assert record.status == "finished"
    assert record.throughput["images"] == pytest.approx((8 - 2) * 6 / (record.seconds or 0), rel=0.01)
    same_weights(state.with_name(REFINER_NAME), trained_alone(config, 0, tmp_path / "whole"))


def test_a_training_that_diverges_says_so_in_a_line_and_keeps_no_state(tmp_path):
    with pytest.raises(ConfigError, match="the loss is nan at step"):
        run_drift(settings(objective="mse", lr=1e30, grad_clip=0.0, steps=40, warmup=0), tmp_path / "run")
    assert not (tmp_path / "run" / "seed0-mse" / REFINER_NAME).exists()


def test_a_damaged_note_of_whose_the_folder_is_is_one_line(tmp_path):
    finished(settings(), tmp_path / "run")
    for text in ("{", "[1]", ""):
        (tmp_path / "run" / "settings.json").write_text(text)
        assert "is damaged" in refuses(settings(), tmp_path / "run", CorruptFileError)


def test_a_finished_training_without_its_curve_is_scored_and_its_state_cleared(tmp_path):
    outcome = finished(settings(), tmp_path / "run")
    folder = tmp_path / "run" / "seed0-drift"
    (folder / CURVE_NAME).unlink()
    (folder / STATE_NAME).write_bytes(b"left by a run that was killed between its last two writes")
    again = finished(settings(), tmp_path / "run")
    assert again.results == outcome.results
    assert not (folder / STATE_NAME).exists()
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1


def test_real_images_are_as_many_as_the_refined_ones(tmp_path):
    outcome = finished(settings(eval_images=6), tmp_path / "run")
    assert {scores["num_images"] for scores in outcome.results.values() if isinstance(scores, dict)} == {6}
