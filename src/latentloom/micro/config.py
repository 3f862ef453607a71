"""The recipe of MicroWan as one validated object; every schedule counts steps, so that a seed reproduces it."""

from typing import Annotated

from pydantic import Field

from latentloom.runs import Config

#: Single-threaded processes that share every batch; part of the recipe, since each draws its own half.
NUM_PROCESSES = 2
#: Clips that a process encodes at a time.
CLIPS_AT_ONCE = 32

Count = Annotated[int, Field(ge=1)]
Batch = Annotated[int, Field(ge=1, multiple_of=NUM_PROCESSES)]
NumClips = Annotated[int, Field(ge=1, multiple_of=NUM_PROCESSES * CLIPS_AT_ONCE)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class VaeConfig(Config):
    """Stage 1: the VAE, first on crops, then its decoder on full clips."""

    base_dim: Count = 24
    decoder_base_dim: Count = 24
    latent_channels: Count = 16
    crop_size: Annotated[int, Field(ge=8, le=48, multiple_of=8)] = 32
    crop_batch: Batch = 16
    crop_steps: Count = 2000
    clip_batch: Batch = 16
    clip_steps: Count = 500
    muon_lr: Rate = 4e-3
    adam_lr: Rate = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    decay_share: Share = 0.5
    ema_decay: Share = 0.98
    object_weight: Annotated[float, Field(ge=0)] = 3.0
    random_colour_share: Share = 0.4
    save_every: Count = 50


class TextConfig(Config):
    """Stage 2: the UMT5 encoder, trained on text alone by predicting masked words, then frozen as Wan's is."""

    d_model: Count = 128
    d_kv: Count = 32
    d_ff: Count = 256
    num_layers: Count = 3
    num_heads: Count = 4
    batch: Batch = 128
    steps: Count = 600
    muon_lr: Rate = 2e-3
    adam_lr: Rate = 4e-3
    mask_share: Share = 0.25
    kept_weight: Share = 0.5


class TransformerConfig(Config):
    """Stage 3: the DiT by flow matching, on the frozen text encoder."""

    num_heads: Count = 4
    head_dim: Count = 32
    ffn_dim: Count = 512
    num_layers: Count = 6
    freq_dim: Count = 64
    num_clips: NumClips = 16384
    batch: Batch = 128
    steps: Count = 5000
    muon_lr: Rate = 4e-3
    adam_lr: Rate = 2e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    decay_share: Share = 0.45
    ema_decay: Share = 0.99
    timestep_shift: Rate = 2.0
    caption_dropout: Share = 0.1
    attribute_dropout: Share = 0.1
    text_noise: Share = 0.25
    save_every: Count = 100


class BuildConfig(Config):
    """The whole recipe; the defaults are the shipped weights'."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    vae: VaeConfig = VaeConfig()
    text: TextConfig = TextConfig()
    transformer: TransformerConfig = TransformerConfig()
