"""Settings that were given and do nothing beside the others."""

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.config import DataConfig, DriftConfig, FieldConfig, MaeConfig, OptimizationConfig


def idle_settings(config: OptimizationConfig) -> list[str]:
    """A line for each setting that was given and has no effect, so that none is ignored in silence."""
    idle = {"muon_lr": (config.optimizer == "muon", "optimizer = muon")}
    if isinstance(config, DataConfig):
        idle |= _idle_data(config)
    if isinstance(config, DriftConfig):
        idle |= _idle_keypatches(config) | _idle_features(config)
    if isinstance(config, FieldConfig):
        idle |= _idle_field(config)
    if isinstance(config, ClipConfig):
        idle |= _idle_clips(config)
    if isinstance(config, MaeConfig):
        tail = "classify_share and classify_weight both above 0"
        classifies = bool(config.classify_share and config.classify_weight)
        idle |= dict.fromkeys(("classify_share", "classify_weight"), (classifies, tail))
    lines = [
        f"{name} has no effect without {needed}"
        for name, (is_used, needed) in idle.items()
        if name in config.model_fields_set and not is_used
    ]
    if config.warmup >= config.steps:
        lines.append(f"warmup = {config.warmup} and the run has {config.steps} steps: the rate is never reached")
    if isinstance(config, FieldConfig) and config.eval_alpha > _largest_alpha(config):
        lines.append(f"eval_alpha = {config.eval_alpha:g} is more than the {_largest_alpha(config):g} of the training")
    return lines


def _idle_data(config: DataConfig) -> dict[str, tuple[bool, str]]:
    """By setting whether it is used, and what it needs."""
    is_fake = config.dataset == "fake"
    return {
        "fake_classes": (is_fake, "dataset = fake"),
        "fake_images": (is_fake, "dataset = fake"),
    }


def _idle_keypatches(config: DriftConfig) -> dict[str, tuple[bool, str]]:
    is_harmonic = (config.interp_mode == "laplacian", "interp_mode = laplacian")
    return {
        **dict.fromkeys(("sigma_feature", "sigma_space", "lambda_reg"), is_harmonic),
        "mask_schedule": (config.num_levels > 1, "num_levels above 1"),
    }


def _idle_clips(config: ClipConfig) -> dict[str, tuple[bool, str]]:
    features = (config.objective == "drift" and config.feature_loss_weight > 0, "features that drifting compares")
    tokens, wan = (config.backbone == "tokens", "backbone = tokens"), (config.backbone == "wan", "backbone = wan")
    lora = (wan[0] and config.train_blocks == "lora", "backbone = wan and train_blocks = lora")
    names = [name for name in type(config).model_fields if name.startswith("feature_include_")]
    return {
        **dict.fromkeys([*names, "feature_checkpoint"], features),
        "feature_mae_steps": (features[0] and config.feature_checkpoint is None, "an autoencoder that is trained here"),
        **dict.fromkeys(("patch_size", "width", "depth", "num_heads"), tokens),
        **dict.fromkeys(("train_blocks", "gradient_checkpointing"), wan),
        **dict.fromkeys(("lora_rank", "base_dtype"), lora),
        "interp_steps": (config.interp_mode == "learned", "interp_mode = learned"),
        "corrupt_sigma": (config.corrupt_mode != "none", "corrupt_mode = dist or gauss"),
        "held_out_share": (config.held_out_root is None, "held-out clips out of data_root, that is, no held_out_root"),
        "num_pseudo_classes": (config.codebook is None, "a codebook that is fitted here"),
    }


def _idle_field(config: FieldConfig) -> dict[str, tuple[bool, str]]:
    drifts = config.objective == "drift"
    guides = drifts and config.drift_n_unc > 0 and config.n_gen_per_class > 1
    guidance = (guides, "objective = drift, drift_n_unc above 0 and n_gen_per_class above 1")
    density = (guides and not config.cfg_alpha_values, "guidance by a density, that is, without cfg_alpha_values")
    names = ("temperatures", "drift_n_neg", "drift_n_unc", "vanilla_loss_weight", "paired")
    return {
        **dict.fromkeys(names, (drifts, "objective = drift")),
        **dict.fromkeys(
            ("drift_n_pos", "queue_pos"), (drifts and not config.paired, "objective = drift and paired = 0")
        ),
        "queue_neg": (drifts and config.drift_n_neg > 0, "drift_n_neg above 0"),
        "queue_unc": (drifts and config.drift_n_unc > 0, "drift_n_unc above 0"),
        **dict.fromkeys(("cfg_alpha_values", "cfg_alpha_probs", "eval_alpha"), guidance),
        **dict.fromkeys(("cfg_alpha_max", "cfg_alpha_power"), density),
        "mse_baseline": (drifts, "objective = drift"),
        "compile_drift": (drifts, "objective = drift"),
        "compile_mode": (drifts and config.compile_drift, "compile_drift = 1"),
    }


def _idle_features(config: DriftConfig) -> dict[str, tuple[bool, str]]:
    compares = config.objective == "drift" and config.feature_loss_weight > 0
    features = (compares, "objective = drift and feature_loss_weight above 0")
    names = ("feature_space", "feature_checkpoint", "feature_loss_weight")
    names += ("feature_include_global_stats", "feature_include_local", "feature_include_patch_stats")
    trains = compares and config.encoder_kind != "resnet" and config.feature_checkpoint is None
    return {
        **dict.fromkeys(names, features),
        "feature_mae_steps": (trains, "an autoencoder that is trained here"),
    }


def _largest_alpha(config: FieldConfig) -> float:
    return max(config.cfg_alpha_values, default=config.cfg_alpha_max)
