"""A refiner's file is scored again as its run scored it, and on nothing but the data of its training."""

import json
from shutil import copy2, copyfile, copytree

import pytest
import torch
from PIL import Image

from latentloom.cli.main import run as run_command
from latentloom.drifting.config import DriftConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.evaluate_refiner import evaluate_refiner
from latentloom.drifting.held_out import HeldOut
from latentloom.drifting.refiner_files import Refiner, load_refiner, save_refiner
from latentloom.drifting.run import run_drift
from latentloom.errors import CheckpointError, FileError
from latentloom.runs.claims import samples_digest

CPU = torch.device("cpu")
SETTINGS = {
    **{"device": "cpu", "dataset": "fake", "image_size": 8, "fake_classes": 3, "fake_images": 36, "patch_size": 2},
    **{"width": 16, "depth": 1, "num_heads": 2, "steps": 30, "lr": 1e-2, "warmup": 1, "ema_decay": 0.5},
    **{"n_classes_step": 3, "n_gen_per_class": 4, "drift_n_pos": 8, "queue_pos": 8, "drift_n_unc": 4, "queue_unc": 12},
    **{"feature_loss_weight": 0.0, "vanilla_loss_weight": 1.0},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A refiner's file and what its run said of it."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    outcome = run_drift(DriftConfig.model_validate(SETTINGS), folder)
    assert outcome is not None
    return folder / "seed0-drift" / "refiner.safetensors", outcome


def test_at_the_strength_of_the_run_the_scores_are_the_runs(finished):
    path, outcome = finished
    results = evaluate_refiner(path, [1.0, 3.0])
    assert list(results) == [
        "IDW interpolation",
        "harmonic interpolation",
        "refiner, alpha 1",
        "refiner, alpha 3",
        "real images",
    ]
    assert results["refiner, alpha 1"] == outcome.results["drifting refiner"]
    assert results["real images"] == outcome.results["real images"]
    assert results["refiner, alpha 3"] != results["refiner, alpha 1"]


def test_the_rows_of_a_table_are_of_as_many_images(finished, tmp_path):
    path, _ = finished
    refiner, config = load_refiner(path)
    save_refiner(tmp_path / "few.safetensors", refiner, config.model_copy(update={"eval_images": 6}), {})
    results = evaluate_refiner(tmp_path / "few.safetensors", [1.0])
    assert {name: scores["num_images"] for name, scores in results.items()} == dict.fromkeys(results, 6)


def test_noise_is_given_to_refiners_and_not_to_interpolation(finished):
    path, _ = finished
    _, config = load_refiner(path)
    data = load_data(config, CPU)
    noisy = HeldOut(data, config.model_copy(update={"noise_std": 0.5}), None, CPU)
    without = HeldOut(data, config, None, CPU)
    assert not torch.equal(noisy.filled, without.filled)
    for name, images in without.interpolated().items():
        assert torch.equal(noisy.interpolated()[name], images)


def test_the_command_prints_the_table_and_writes_json(finished, tmp_path, capsys):
    path, _ = finished
    assert run_command(["drift", "evaluate", str(path), "--alpha", "1,2", "--json", str(tmp_path / "scores.json")]) == 0
    assert "refiner, alpha 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["refiner, alpha 1"]["num_images"] > 0


@pytest.mark.parametrize("strengths", ["0.5", "one", "1,,2", "inf"])
def test_strengths_below_1_and_words_are_refused_in_a_line(finished, strengths, capsys):
    path, _ = finished
    assert run_command(["drift", "evaluate", str(path), "--alpha", strengths]) == 2
    assert "--alpha" in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"none\.safetensors"):
        evaluate_refiner(tmp_path / "none.safetensors", [1.0])


@pytest.mark.parametrize(("change", "words"), [({"fake_classes": 4}, "4"), ({"image_size": 12}, "images of")])
def test_data_that_the_refiner_was_not_trained_on_is_refused(finished, tmp_path, change, words):
    path, _ = finished
    refiner, config = load_refiner(path)
    other = config.model_copy(update=change)
    save_refiner(tmp_path / "other.safetensors", refiner, other, {})
    if "image_size" in change:  # the file says of what size its refiner is; its settings lie
        assert refiner.keypatches.shape == (3, 8, 8)
    with pytest.raises(CheckpointError, match=words):
        evaluate_refiner(tmp_path / "other.safetensors", [1.0])


@pytest.fixture
def photos(finished, tmp_path):
    """A folder of noise, and a refiner's file that says it was trained on it."""
    folder, generator = tmp_path / "photos", torch.Generator().manual_seed(0)
    for name in ("cat", "dog", "eel"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number}.png")
    refiner, _ = load_refiner(finished[0])
    changes = {"dataset": "imagefolder", "data_root": folder, "fake_classes": 10, "fake_images": 512}
    config = DriftConfig.model_validate({**SETTINGS, **changes})
    path = tmp_path / "photos.safetensors"
    save_refiner(path, refiner, config, {"images": samples_digest(load_data(config, CPU).train.fingerprint)})
    return path, folder


def test_a_copy_of_the_images_is_scored_alike_and_one_with_other_times_is_refused(photos, tmp_path):
    path, folder = photos
    expected = evaluate_refiner(path, [1.0])
    copytree(folder, tmp_path / "copy", copy_function=copy2)  # keeps times
    folder.rename(tmp_path / "moved")
    for place in ("copy", "moved"):
        assert evaluate_refiner(path, [1.0], data_root=tmp_path / place) == expected
    copytree(tmp_path / "moved", tmp_path / "new", copy_function=copyfile)
    with pytest.raises(
        CheckpointError, match=r"^[^\n]*names, sizes or times of their files have changed[^\n]*cp -a\)$"
    ):
        evaluate_refiner(path, [1.0], data_root=tmp_path / "new")


def test_a_file_that_does_not_say_its_images_is_scored_on_those_it_is_given(photos, tmp_path):
    path, folder = photos
    refiner, config = load_refiner(path)
    save_refiner(tmp_path / "silent.safetensors", refiner, config, {"seed": 0})
    (folder / "cat" / "0.png").touch()
    assert evaluate_refiner(tmp_path / "silent.safetensors", [1.0])["real images"]["num_images"] > 0


def test_a_place_for_data_that_has_none_is_refused_in_a_line(finished, tmp_path, capsys):
    path, _ = finished
    assert run_command(["drift", "evaluate", str(path), "--data-root", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "dataset = 'fake', which has no data_root; leave it out" in said
    assert "Traceback" not in said


def test_a_loaded_refiner_refines_as_the_saved_one(finished, tmp_path):
    path, _ = finished
    refiner, config = load_refiner(path)
    save_refiner(tmp_path / "again.safetensors", refiner, config, {})
    again, _ = load_refiner(tmp_path / "again.safetensors")
    assert isinstance(again, Refiner)
    for name, weight in refiner.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[name])
