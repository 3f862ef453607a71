"""Settings of `latentloom drift train` on clips, by the names of the document's options."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from latentloom.drifting.config import Count, FieldConfig, NotNegative, Number, Positive, Seed, Share
from latentloom.runs import Config

Backbone = Literal["tokens", "wan"]
FrameInterpolation = Literal["linear", "smooth", "flow", "sinkhorn", "learned"]


class ClipDataConfig(Config):
    """Which clips, and which of them are held out."""

    dataset: Literal["shards"] = Field(default="shards", description="Shards of clips.")
    data_root: Path = Field(
        default=Path("datasets/clips/train"),
        description="Folder of the shards, or their names with braces: shard-{00000..00009}.tar.",
    )
    held_out_root: Path | None = Field(
        default=None, description="Shards of the held-out clips; none: held_out_share of the clips."
    )
    held_out_share: float = Field(
        default=0.1, gt=0, lt=1, description="Share of the clips that training never sees; evaluation is on it."
    )
    split_seed: Seed = Field(default=0, description="Decides which clips are held out, and their noise.")
    use_text: bool = Field(default=True, description="Condition on the prompts, where the shards have them.")


class ClipConfig(FieldConfig, ClipDataConfig):
    """Settings of a refiner of clips."""

    steps: Count = Field(default=2000, description="Optimizer steps.")

    num_levels: Count = Field(default=4, description="Corruption levels; training draws one for each clip.")
    min_keyframes: Count = Field(default=2, description="Given frames at the last level.")
    keyframe_schedule: Literal["uniform", "random"] = Field(
        default="uniform", description="Whether keyframes are evenly spaced, or those between the ends are drawn."
    )
    interp_mode: FrameInterpolation = Field(default="linear", description="How missing frames are filled.")
    interp_steps: Count = Field(default=300, description="Steps that learned interpolation is fitted for.")
    corrupt_mode: Literal["none", "dist", "gauss"] = Field(
        default="none", description="Noise on missing frames: none, growing with the distance to a keyframe, or even."
    )
    corrupt_sigma: NotNegative = Field(default=0.1, description="Largest deviation of that noise.")
    student_replace_prob: Share = Field(
        default=0.0, description="Share of keyframes that the shards' anchors replace: another model's keyframes."
    )
    still_tolerance: NotNegative = Field(
        default=0.05,
        description="Where neighbouring keyframes differ by less, the refiner changes next to nothing; 0 lets it.",
    )
    keep_anchors_fixed: bool = Field(default=True, description="Put given frames back into the refined clip.")
    target: Literal["clean", "adjacent"] = Field(
        default="clean", description="What a level is refined to: the clip, or the level with more keyframes."
    )

    backbone: Backbone = Field(default="tokens", description="A small token transformer, or the blocks of a Wan DiT.")
    patch_size: Count = Field(default=2, description="Side of a token in cells of a frame.")
    width: Count = Field(default=128, description="Channels of the token transformer.")
    depth: Count = Field(default=4, description="Blocks of the token transformer.")
    ckpt_root: Path | None = Field(
        default=None, description="Checkpoint of the Wan DiT, and of the latents' VAE; MicroWan when not given."
    )
    train_blocks: Literal["full", "lora"] = Field(
        default="full", description="Whether a Wan DiT's blocks are trained, or a LoRA on them."
    )
    lora_rank: Count = Field(default=16, description="Rank of that LoRA.")
    base_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Of the frozen blocks under that LoRA; bfloat16 takes half the memory."
    )
    gradient_checkpointing: bool = Field(
        default=False, description="Compute a Wan DiT's blocks again for the gradient: slower, with far less memory."
    )

    init_refiner: Path | None = Field(
        default=None, description="Refiner whose weights training starts from, such as one trained by regression."
    )

    num_pseudo_classes: Count = Field(default=16, description="Pseudo-classes K, quantised from prompt and keyframes.")
    codebook: Path | None = Field(
        default=None, description="Codebook that `latentloom drift quantize` wrote; none: one is fitted here."
    )
    n_classes_step: Count = Field(default=4, description="Classes per batch and process.")
    n_gen_per_class: Count = Field(default=8, description="Refined clips per class.")
    paired: bool = Field(
        default=True,
        description="Attract by the batch's own real clips alone, and let each refined one repel itself too.",
    )
    drift_n_pos: Count = Field(default=32, description="Real clips per class that attract.")
    drift_n_unc: Number = Field(default=0, description="Real clips of any class that repel, weighted by alpha.")
    temperatures: tuple[Positive, ...] = Field(
        default=(0.05, 0.2, 0.5), min_length=1, description="Of the kernel, in mean distances."
    )
    queue_pos: Count = Field(default=32, description="Real clips kept per class.")
    queue_neg: Count = Field(default=32, description="Refined clips kept per class.")
    queue_unc: Count = Field(default=128, description="Real clips kept of all classes.")
    cfg_alpha_values: tuple[float, ...] = Field(
        default=(1.0,), description="Guidance strengths to draw from; none: a density."
    )
    feature_include_motion: bool = Field(
        default=True, description="Differences between frames, and the course of a clip's means."
    )
    vanilla_loss_weight: NotNegative = Field(default=1.0, description="Weight of drifting on the clips themselves.")
    eval_clips: Count = Field(default=512, description="Held-out clips that evaluation takes at most.")
    eval_levels: tuple[Number, ...] = Field(default=(), description="Levels to evaluate; none: all.")

    @model_validator(mode="after")
    def _fits_together(self) -> "ClipConfig":
        if self.target == "adjacent" and (self.objective == "drift" or self.mse_baseline):
            raise ValueError("target = 'adjacent' is a regression; set objective = 'mse', without mse_baseline")
        if any(level >= self.num_levels for level in self.eval_levels):
            raise ValueError(f"eval_levels go from 0 to {self.num_levels - 1}")
        return self
