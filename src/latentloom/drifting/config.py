"""Settings of trainings on images, by the document's option names; a field's description is its option's help."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentloom.runs import Config

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Strength = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

DatasetName = Literal["digits", "fake", "imagefolder", "latents", "shards"]
#: Data sets that lie somewhere, and have to be told where.
_STORED = ("imagefolder", "latents", "shards")
InputSpace = Literal["pixel", "latent"]


class DataConfig(Config):
    """Which images, and whether a model sees their pixels or their latents."""

    dataset: DatasetName = Field(
        default="digits",
        description="Digits of scikit-learn, drawn shapes, class folders, latents, or clips in shards.",
    )
    data_root: Path | None = Field(
        default=None, description="Folder of the imagefolder or of the shards, or safetensors file of the latents."
    )
    image_size: Count | None = Field(
        default=None, description="Height and width in pixels; 8 for digits, otherwise 64."
    )
    fake_classes: Count = Field(default=10, description="Classes of the fake dataset.")
    fake_images: Count = Field(default=512, description="Images of the fake dataset.")
    held_out_root: Path | None = Field(
        default=None, description="Shards of the held-out clips; none: held_out_share of the clips."
    )
    held_out_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="Share of each class that training never sees; evaluation is on it."
    )
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Share of the training images that evaluation is on in place of the held-out ones."
    )
    split_seed: Seed = Field(default=0, description="Decides which images are held out.")
    flip: bool = Field(default=False, description="Mirror training images at random.")
    input_space: InputSpace = Field(
        default="pixel", description="Whether the refiner works on pixels or on VAE latents."
    )
    vae_root: Path | None = Field(
        default=None, description="Checkpoint whose VAE makes the latents; MicroWan when not given."
    )
    latent_cache: Path | None = Field(default=None, description="Safetensors file that keeps the latents between runs.")

    @model_validator(mode="after")
    def _has_its_data(self) -> "DataConfig":
        if self.dataset in _STORED and self.data_root is None:
            raise ValueError(f"dataset = {self.dataset!r} needs data_root")
        if self.dataset not in _STORED and self.data_root is not None:
            raise ValueError(f"data_root has no effect with dataset = {self.dataset!r}; leave it out")
        if self.dataset != "shards" and self.held_out_root is not None:
            raise ValueError(f"held_out_root has no effect with dataset = {self.dataset!r}; leave it out")
        if self.dataset == "latents" and self.input_space == "pixel":
            raise ValueError("dataset = 'latents' holds latents; set input_space = 'latent'")
        if self.input_space == "pixel" and (self.vae_root or self.latent_cache):
            raise ValueError("vae_root and latent_cache have no effect with input_space = 'pixel'; leave them out")
        return self

    @property
    def pixels(self) -> int:
        """Height and width of the images."""
        return self.image_size or (8 if self.dataset == "digits" else 64)


class OptimizationConfig(Config):
    """How weights move, and what a run keeps."""

    steps: Count = Field(default=1200, description="Optimizer steps.")
    grad_accum: Count = Field(default=1, description="Batches per optimizer step.")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="Muon takes hidden matrices, Adam the rest."
    )
    lr: Positive = Field(default=1e-3, description="Rate of AdamW, and of Muon's Adam part.")
    muon_lr: Positive = Field(default=2e-3, description="Rate of Muon, in AdamW's scale.")
    weight_decay: NotNegative = Field(default=0.01, description="Decoupled decay of matrices.")
    warmup: Number = Field(default=50, description="Steps until the rate is reached.")
    decay: Literal["constant", "cosine"] = Field(default="cosine", description="The rate after the warmup.")
    grad_clip: NotNegative = Field(default=2.0, description="Largest norm of a step's gradient; 0 is no limit.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="Of the averaged weights that are kept."
    )
    amp_bf16: bool = Field(default=False, description="Compute the networks in bfloat16; the field stays float32.")
    log_every: Count = Field(default=20, description="Steps between lines of the curve.")
    save_every: Count = Field(default=200, description="Steps between checkpoints.")
    device: str | None = Field(default=None, description="cpu, cuda or cuda:N; the accelerator if there is one.")


class FieldConfig(OptimizationConfig):
    """What is drifted towards what, and in which features."""

    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1, description="One training for each.")
    objective: Literal["drift", "mse"] = Field(
        default="drift", description="Drifting, or regression to the clean sample."
    )
    mse_baseline: bool = Field(default=False, description="Train an MSE refiner for as many steps, to compare with.")

    width: Count = Field(default=96, description="Channels of the refiner.")
    depth: Count = Field(default=3, description="Transformer blocks of the refiner.")
    num_heads: Count = Field(default=4, description="Attention heads of the refiner.")

    n_classes_step: Count = Field(default=5, description="Classes per batch and process.")
    n_gen_per_class: Count = Field(default=16, description="Refined images per class.")
    paired: bool = Field(
        default=False,
        description="Attract by the batch's own real samples alone, and let each refined one repel itself too.",
    )
    drift_n_pos: Count = Field(default=64, description="Real images per class that attract.")
    drift_n_neg: Number = Field(default=0, description="Earlier refined images per class that repel.")
    drift_n_unc: Number = Field(default=16, description="Real images of any class that repel, weighted by alpha.")
    queue_pos: Count = Field(default=128, description="Real images kept per class.")
    queue_neg: Count = Field(default=64, description="Refined images kept per class.")
    queue_unc: Count = Field(default=512, description="Real images kept of all classes.")
    temperatures: tuple[Positive, ...] = Field(
        default=(0.02, 0.05, 0.2), min_length=1, description="Of the kernel, in mean distances."
    )
    cfg_alpha_values: tuple[float, ...] = Field(
        default=(), description="Guidance strengths to draw from; none: a density."
    )
    cfg_alpha_probs: tuple[float, ...] = Field(default=(), description="Their probabilities; none: equal.")
    cfg_alpha_max: Strength = Field(default=4.0, description="End of the density's range, from 1.")
    cfg_alpha_power: NotNegative = Field(default=3.0, description="The density is alpha to the minus this power.")
    eval_alpha: Strength = Field(default=1.0, description="Guidance strength of evaluation and samples.")

    feature_checkpoint: Path | None = Field(
        default=None,
        description="A ResNet's folder (none: random weights), or what train-mae wrote (none: trained here).",
    )
    feature_mae_steps: Count = Field(default=1000, description="Steps of the MAE that is trained here.")
    feature_include_global_stats: bool = Field(default=True, description="Mean and deviation of every feature map.")
    feature_include_local: bool = Field(default=False, description="Every cell of the feature maps.")
    feature_include_patch_stats: bool = Field(
        default=True, description="Mean and deviation of parts of the feature maps."
    )
    feature_loss_weight: NotNegative = Field(default=1.0, description="Weight of drifting in features.")
    vanilla_loss_weight: NotNegative = Field(default=0.0, description="Weight of drifting on the images themselves.")
    compile_drift: bool = Field(default=False, description="Compile the field, for static shapes.")
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        default="default", description="Of torch.compile."
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> "FieldConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {','.join(map(str, self.seeds))} names a seed twice; give each once")
        values, probabilities = self.cfg_alpha_values, self.cfg_alpha_probs
        if any(not 1 <= value < float("inf") for value in values):
            raise ValueError("cfg_alpha_values are 1 or more; 1 is no guidance")
        if probabilities and len(probabilities) != len(values):
            raise ValueError(f"{len(probabilities)} cfg_alpha_probs for {len(values)} cfg_alpha_values; give one each")
        if probabilities and (min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-3):
            raise ValueError("cfg_alpha_probs are 0 or more and sum to 1")
        if self.width % self.num_heads:
            raise ValueError(f"width = {self.width} is not a multiple of num_heads = {self.num_heads}")
        for count, queue in (("drift_n_pos", "queue_pos"), ("drift_n_neg", "queue_neg"), ("drift_n_unc", "queue_unc")):
            if getattr(self, count) > getattr(self, queue):
                raise ValueError(
                    f"{count} = {getattr(self, count)} is more than {queue} = {getattr(self, queue)} holds"
                )
        if self.objective == "drift" and not (self.feature_loss_weight or self.vanilla_loss_weight):
            raise ValueError("feature_loss_weight and vanilla_loss_weight are both 0; nothing would be learned")
        features = [name for name in type(self).model_fields if name.startswith("feature_include_")]
        if self.objective == "drift" and self.feature_loss_weight and not any(getattr(self, name) for name in features):
            raise ValueError(f"{', '.join(features)} are all 0; set one, or feature_loss_weight = 0")
        if self.feature_checkpoint is not None and not self.feature_loss_weight:
            raise ValueError("feature_checkpoint has no effect with feature_loss_weight = 0; leave it out")
        return self


class MaeConfig(OptimizationConfig, DataConfig):
    """Settings of `latentloom drift train-mae`."""

    seed: Seed = Field(default=0, description="Of weights, order and masks.")
    steps: Count = Field(default=1000, description="Optimizer steps.")
    batch_size: Count = Field(default=128, description="Images per batch and process.")
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Share of patches that are hidden."
    )
    mask_patch: Count = Field(default=2, description="Side of a hidden patch, in cells of the input.")
    width: Count = Field(default=32, description="Channels of the first stage; each further stage has twice as many.")
    stages: Annotated[int, Field(ge=1, le=8)] = Field(
        default=3, description="Stages of the encoder, each at half the resolution of the one before."
    )
    blocks: Count = Field(default=2, description="Residual blocks per stage.")
    classify_share: Share = Field(default=0.0, description="Last share of the steps in which labels are learned too.")
    classify_weight: NotNegative = Field(default=0.1, description="Weight of the classification loss in that tail.")


class DriftConfig(FieldConfig, DataConfig):
    """Settings of `latentloom drift train`."""

    patch_size: Count | None = Field(
        default=None, description="Side of a patch in cells of the input; 2 for digits, else 4."
    )
    num_levels: Count = Field(default=1, description="Corruption levels; training draws one for each image.")
    min_key_patches: Count | None = Field(
        default=None, description="Given patches at the last level; a quarter of all."
    )
    mask_schedule: Literal["geom", "linear", "doubling"] = Field(default="geom", description="Given patches by level.")
    interp_mode: Literal["idw", "laplacian"] = Field(default="laplacian", description="How missing patches are filled.")
    idw_power: Positive = Field(default=2.0, description="Of inverse-distance weights.")
    sigma_feature: Positive = Field(default=1.0, description="Feature distance at which an edge of the graph weakens.")
    sigma_space: Positive = Field(default=1.0, description="The same for the distance in patches.")
    lambda_reg: NotNegative = Field(default=1e-4, description="How strongly the solution is held to its IDW start.")
    noise_std: NotNegative = Field(default=0.0, description="Of Gaussian noise on missing patches.")
    keep_anchors_fixed: bool = Field(default=False, description="Put given patches back into the refined image.")

    eval_images: Count = Field(
        default=2048, description="Held-out images that evaluation takes at most, evenly of all classes."
    )

    feature_space: Literal["resnet", "latent_mae", "mae"] | None = Field(
        default=None, description="Frozen feature encoder; mae for digits, latent_mae for latents, otherwise resnet."
    )

    @model_validator(mode="after")
    def _reads_what_it_is_given(self) -> "DriftConfig":
        if self.dataset == "shards":
            raise ValueError("dataset = 'shards' holds clips, whose settings are ClipConfig")
        if self.feature_space == "latent_mae" and self.input_space == "pixel":
            raise ValueError("feature_space = 'latent_mae' reads latents; use 'mae' or 'resnet' for pixels")
        if self.feature_space in ("mae", "resnet") and self.input_space == "latent":
            raise ValueError(f"feature_space = {self.feature_space!r} reads pixels; use 'latent_mae' for latents")
        return self

    @property
    def encoder_kind(self) -> Literal["resnet", "latent_mae", "mae"]:
        """The feature encoder, also where the settings leave it to the data."""
        if self.feature_space is not None:
            return self.feature_space
        if self.input_space == "latent":
            return "latent_mae"
        return "mae" if self.dataset == "digits" else "resnet"
