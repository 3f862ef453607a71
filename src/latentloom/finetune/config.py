"""The trainer's settings, as the document's TOML files name them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from latentloom.runs import Config

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class CaptionAugConfig(Config):
    """Trims training captions to the words that are being calibrated; evaluation never sees it.

    Args:
        trim_prob: chance that a caption which holds keywords is cut down to them.
        trim_prob_schedule: `constant`, or `linear`: from trim_prob at the first step down to 0 at the last.
        case_insensitive: whether keywords match whatever their capitals.
        single_token: keep one keyword of the caption, drawn at random; otherwise all of them, in their order.
        keywords: words or phrases to look for.
    """

    enable: bool = False
    trim_prob: Share = 0.0
    trim_prob_schedule: Literal["constant", "linear"] = "constant"
    case_insensitive: bool = True
    single_token: bool = True
    keywords: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _can_act(self) -> "CaptionAugConfig":
        if self.enable and not self.keywords:
            raise ValueError("enable = true without keywords trims nothing; list keywords, or set enable = false")
        return self


class ModelConfig(Config):
    """Which checkpoint, what of it is trained, and at which noise.

    Args:
        ckpt_path: a checkpoint in any layout; None is MicroWan.
        dtype: of the frozen weights.
        transformer_dtype: `float8` stores the frozen transformer in eight bits and computes in `dtype`.
        text_encoder_path: a trained encoder's file in place of the checkpoint's encoder: texts are cached with it, or
            its training goes on.
        experts: of a two-expert model, which one is trained; `both` trains one after the other.
        text_train_blocks: the top N blocks of the encoder; 0 trains all of it, embeddings and final norm included.
        text_anchor_weight: of the regulariser that holds the encoder to what it was when training began.
        text_dropout: inside the encoder while it is trained; 0 as Wan uses it.
        save_text_encoder_full: write the whole encoder at every save, not the trained tensors alone.
        save_diffusion_model: write the transformer with the adapter merged in, beside the adapter.
        timestep_sample_method: how noise levels are drawn.
        sigmoid_scale: width of the logit-normal distribution.
        shift: moves noise levels towards noise; None is no shift (1).
        min_t, max_t: the range noise levels are drawn from, after the shift.
        first_frame_prob: share of clips whose first latent frame stays clean at timestep 0 (TI2V-5B's image input).
    """

    type: Literal["wan"] = "wan"
    ckpt_path: Path | None = None
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    transformer_dtype: Literal["float8"] | None = None
    text_encoder_path: Path | None = None
    experts: Literal["high", "low", "both"] | None = None
    cache_text_embeddings: bool = True
    train_text_encoder: bool = False
    text_train_blocks: Annotated[int, Field(ge=0)] = 0
    text_anchor_weight: NotNegative = 0.0
    text_dropout: Share = 0.0
    freeze_transformer: bool = True
    save_text_encoder_full: bool = False
    save_diffusion_model: bool = False
    timestep_sample_method: Literal["logit_normal", "uniform"] = "logit_normal"
    sigmoid_scale: Positive = 1.0
    shift: Positive | None = None
    min_t: Share = 0.0
    max_t: Share = 1.0
    first_frame_prob: Share = 0.0
    caption_aug: CaptionAugConfig = CaptionAugConfig()


class AdapterConfig(Config):
    """The LoRA "translator".

    Args:
        train_blocks_range: first and last block that get an adapter, both included; None is all.
        targets: linear layers of a block, in the official names.
        allow_self_attn: must be true before a target of `self_attn` is taken.
    """

    type: Literal["lora"] = "lora"
    rank: Count = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    train_blocks_range: tuple[int, int] | None = None
    targets: tuple[str, ...] = ("cross_attn.k", "cross_attn.v")
    allow_self_attn: bool = False


class OptimizerConfig(Config):
    """How weights move.

    Args:
        type: the two 8-bit ones and `adamw_kahan` keep trained weights in the model's dtype, the others in float32.
        lr: of everything that has no rate of its own.
        lr_te, lr_dit: of the text encoder and of the adapter; None is `lr`.
    """

    type: Literal["AdamW8bitKahan", "adamw8bit", "adamw", "muon"] = "adamw"
    lr: Positive = 2e-5
    lr_te: Positive | None = None
    lr_dit: Positive | None = None
    weight_decay: NotNegative = 0.01
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Positive = 1e-8


class FinetuneConfig(Config):
    """One training run.

    Args:
        dataset: the dataset's TOML file, or a media folder for its defaults.
        micro_batch_size_per_gpu: clips per micro-batch; of buckets of images, `image_micro_batch_size_per_gpu`.
        steps_per_print: training steps between two lines of the log.
        mixed_precision: what matrix products compute in; `none` is the weights' own dtype.
        blocks_to_swap: transformer blocks whose frozen weights wait on the CPU; for LoRA only.
        checkpoint_every_n_steps, checkpoint_every_n_minutes: whichever comes first; None is never.
        checkpoints_kept: older ones are deleted.
        eval_share: share of the items held out for the evaluation loss.
        sample_every_n_epochs: None is after the last epoch for MicroWan and never for larger models; 0 is never.
        max_steps: ends the run early.
        device: `cpu` or `cuda`; None is the best there is.
    """

    output_dir: Path
    dataset: Path
    epochs: Count = 1
    micro_batch_size_per_gpu: Count = 1
    image_micro_batch_size_per_gpu: Count | None = None
    gradient_accumulation_steps: Count = 1
    gradient_clipping: NotNegative = 1.0
    save_every_n_epochs: Count = 1
    steps_per_print: Count = 1
    mixed_precision: Literal["bf16", "none"] = "bf16"
    pipeline_stages: Count = 1
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lr_scheduler: Literal["constant", "cosine"] = "constant"
    activation_checkpointing: bool = False
    blocks_to_swap: Annotated[int, Field(ge=0)] = 0
    disable_block_swap_for_eval: bool = False
    checkpoint_every_n_steps: Count | None = None
    checkpoint_every_n_minutes: Positive | None = 30.0
    checkpoints_kept: Count = 2
    eval_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    eval_every_n_epochs: Count = 1
    sample_every_n_epochs: Annotated[int, Field(ge=0)] | None = None
    sample_prompts: tuple[str, ...] = ()
    caching_batch_size: Count = 1
    max_steps: Count | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Literal["cpu", "cuda"] | None = None
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig | None = None
    optimizer: OptimizerConfig = OptimizerConfig()

    @model_validator(mode="after")
    def _can_train(self) -> "FinetuneConfig":
        for is_wrong, message in _contradictions(self):
            if is_wrong:
                raise ValueError(message)
        return self


def _contradictions(config: FinetuneConfig) -> Iterator[tuple[bool, str]]:
    """Pairs of settings that cannot train together, or of which one would have no effect."""
    model, optimizer, adapter = config.model, config.optimizer, config.adapter
    trains_text = model.train_text_encoder
    yield (
        trains_text and model.cache_text_embeddings,
        "model.train_text_encoder = true cannot train with model.cache_text_embeddings = true, which bypasses the "
        "encoder; set model.cache_text_embeddings = false",
    )
    yield (
        not trains_text and adapter is None,
        "nothing would be trained: add an [adapter] section, or set model.train_text_encoder = true",
    )
    yield (
        not model.freeze_transformer,
        "model.freeze_transformer = false, training the whole transformer, is not offered; set it to true and add an "
        "[adapter] section",
    )
    for key, is_set in (
        ("model.text_train_blocks", model.text_train_blocks > 0),
        ("model.text_anchor_weight", model.text_anchor_weight > 0),
        ("model.text_dropout", model.text_dropout > 0),
        ("model.save_text_encoder_full", model.save_text_encoder_full),
        ("optimizer.lr_te", optimizer.lr_te is not None),
    ):
        yield is_set and not trains_text, f"{key} has no effect with model.train_text_encoder = false; leave it out"
    for key, is_set in (
        ("model.save_diffusion_model", model.save_diffusion_model),
        ("blocks_to_swap", config.blocks_to_swap > 0),
        ("optimizer.lr_dit", optimizer.lr_dit is not None),
    ):
        yield is_set and adapter is None, f"{key} has no effect without an [adapter] section; leave it out"
    yield (
        trains_text and config.blocks_to_swap > 0,
        "blocks_to_swap is for LoRA only; set it to 0 with model.train_text_encoder = true",
    )
    yield (
        model.caption_aug.enable and model.cache_text_embeddings,
        "model.caption_aug.enable = true has no effect on texts that come from the cache; set "
        "model.cache_text_embeddings = false",
    )
    yield (
        config.pipeline_stages > 1 and bool(config.sample_every_n_epochs),
        "sample_every_n_epochs needs the whole model in one process; set it to 0 with pipeline_stages above 1",
    )
