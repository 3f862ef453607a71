"""A setting that was given and does nothing is named; what the settings leave to their defaults is not."""

import pytest

from latentloom.drifting.config import DriftConfig, MaeConfig
from latentloom.drifting.idle_settings import idle_settings


def test_defaults_are_never_idle():
    assert idle_settings(DriftConfig()) == []
    assert idle_settings(MaeConfig()) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"fake_images": 9}, "fake_images"),
        ({"muon_lr": 0.1}, "muon_lr"),
        ({"interp_mode": "idw", "sigma_feature": 0.5}, "sigma_feature"),
        ({"mask_schedule": "linear"}, "mask_schedule"),
        ({"objective": "mse", "mse_baseline": True}, "mse_baseline"),
        ({"objective": "mse", "feature_checkpoint": "mae.safetensors"}, "feature_checkpoint"),
        ({"objective": "mse", "temperatures": (0.1,)}, "temperatures"),
        ({"drift_n_unc": 0, "cfg_alpha_values": (1.0, 2.0)}, "cfg_alpha_values"),
        ({"n_gen_per_class": 1, "eval_alpha": 2.0}, "eval_alpha"),
        ({"cfg_alpha_values": (1.0, 2.0), "cfg_alpha_max": 3.0}, "cfg_alpha_max"),
        ({"queue_neg": 8}, "queue_neg"),
        ({"compile_mode": "max-autotune"}, "compile_mode"),
        ({"feature_space": "resnet", "feature_mae_steps": 5}, "feature_mae_steps"),
        ({"feature_loss_weight": 0.0, "vanilla_loss_weight": 1.0, "feature_space": "resnet"}, "feature_space"),
    ],
)
def test_a_setting_without_effect_is_named_with_what_it_needs(given, named):
    lines = idle_settings(DriftConfig.model_validate(given))
    assert any(line.startswith(f"{named} has no effect without ") for line in lines)


def test_what_has_an_effect_is_not_named():
    config = DriftConfig(dataset="fake", fake_images=9, optimizer="muon", muon_lr=0.1, num_levels=2, drift_n_neg=4)
    assert idle_settings(config) == []


def test_strengths_beyond_the_training_and_rates_never_reached_are_named():
    (strength,) = idle_settings(DriftConfig(cfg_alpha_values=(1.0, 2.0), eval_alpha=3.0))
    assert "eval_alpha = 3 is more than the 2" in strength
    (rate,) = idle_settings(DriftConfig(steps=10, warmup=10))
    assert "the rate is never reached" in rate


def test_half_a_classification_tail_of_an_autoencoder_is_named():
    assert "classify_share" in idle_settings(MaeConfig(classify_share=0.5, classify_weight=0.0))[0]
    assert idle_settings(MaeConfig(classify_share=0.5)) == []
