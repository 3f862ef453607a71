"""The recipes for eight accelerators: they fit each other, make the batch that they state, and train when shrunken."""

import math
from pathlib import Path

import pytest

from latentloom.drifting.config import DataConfig, DriftConfig, MaeConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.run import run_drift
from latentloom.drifting.train import CURVE_NAME, effective_batch
from latentloom.drifting.train_mae import effective_batch as mae_effective_batch
from latentloom.drifting.train_mae import run_train_mae
from latentloom.runs import load_config
from latentloom.training import read_curve

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MAE, DRIFT = RECIPES / "8gpu_latent_mae.toml", RECIPES / "8gpu_drifting_latent.toml"


def shrunken(config: DriftConfig | MaeConfig, folder: Path, **changes: object) -> dict[str, object]:
    """A recipe's settings with its images, networks and numbers of steps made small; its choices stay."""
    small = {"dataset": "fake", "data_root": None, "image_size": 64, "fake_images": 24, "fake_classes": 2}
    small |= {"held_out_share": 0.25, "latent_cache": folder / "latents.safetensors", "device": "cpu"}
    small |= {"width": 8, "steps": 3, "warmup": 1, "log_every": 1, "save_every": 2, "ema_decay": 0.5}
    return {**config.model_dump(), **small, **changes}


@pytest.mark.parametrize(("path", "verb"), [(MAE, "train-mae"), (DRIFT, "train")], ids=["mae", "drift"])
def test_a_recipe_states_the_line_that_launches_it(path, verb):
    line = f"torchrun --nproc_per_node 8 --no-python latentloom drift {verb} --config recipes/{path.name}"
    assert f"#   {line}\n" in path.read_text(encoding="utf-8")


def test_eight_processes_make_the_effective_batch_of_4096_images():
    assert 8 * mae_effective_batch(load_config(MaeConfig, MAE)) == 4096
    assert 8 * effective_batch(load_config(DriftConfig, DRIFT)) == 4096


def test_both_recipes_read_the_same_images_and_hold_out_the_same():
    mae, drift = load_config(MaeConfig, MAE), load_config(DriftConfig, DRIFT)
    assert {name: getattr(drift, name) for name in DataConfig.model_fields} == {
        name: getattr(mae, name) for name in DataConfig.model_fields
    }
    assert drift.encoder_kind == "latent_mae"


def test_the_given_patches_are_those_that_the_recipe_states():
    keypatches = Keypatches(load_config(DriftConfig, DRIFT), (16, 32, 32))
    assert keypatches.num_patches == 256
    assert keypatches.counts == (128, 64, 32, 16)


def test_shrunken_the_one_trains_on_the_features_of_the_other(tmp_path):
    mae = MaeConfig.model_validate(shrunken(load_config(MaeConfig, MAE), tmp_path, batch_size=8, stages=2, blocks=1))
    weights = run_train_mae(mae, tmp_path / "mae")
    recipe = load_config(DriftConfig, DRIFT)
    assert weights is not None
    assert recipe.feature_checkpoint == Path("runs/drift_mae") / weights.name
    small = {"feature_checkpoint": weights, "num_heads": 2, "depth": 1, "min_key_patches": 1}
    small |= {"n_classes_step": 2, "n_gen_per_class": 4, "drift_n_pos": 4, "drift_n_unc": 2}
    config = DriftConfig.model_validate(shrunken(recipe, tmp_path, **small))
    outcome = run_drift(config, tmp_path / "drift")
    assert outcome is not None
    assert outcome.results["effective_batch"] == 8
    losses = [line["loss"] for line in read_curve(tmp_path / "drift" / "seed0-drift" / CURVE_NAME)]
    assert len(losses) == 3
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert (tmp_path / "drift" / "report.html").exists()
