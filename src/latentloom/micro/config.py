"""The recipe of MicroWan as one validated object; every schedule counts steps, so that a seed reproduces it."""

from latentloom.runs import Config

#: Single-threaded processes that share every batch; part of the recipe, since each draws its own half.
NUM_PROCESSES = 2


class VaeConfig(Config):
    """Stage 1: the VAE, first on crops, then its decoder on full clips."""

    base_dim: int = 24
    decoder_base_dim: int = 24
    latent_channels: int = 16
    crop_size: int = 32
    crop_batch: int = 16
    crop_steps: int = 2000
    clip_batch: int = 16
    clip_steps: int = 500
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    warmup: int = 50
    decay_share: float = 0.5
    ema_decay: float = 0.98
    object_weight: float = 3.0
    random_colour_share: float = 0.4
    save_every: int = 50


class TextConfig(Config):
    """Stage 2: the UMT5 encoder, warmed up as a classifier of the attributes a caption mentions."""

    d_model: int = 128
    d_kv: int = 32
    d_ff: int = 256
    num_layers: int = 3
    num_heads: int = 4
    batch: int = 128
    steps: int = 200
    muon_lr: float = 4e-3
    adam_lr: float = 3e-3


class TransformerConfig(Config):
    """Stage 3: the DiT by flow matching, together with the text encoder."""

    num_heads: int = 4
    head_dim: int = 32
    ffn_dim: int = 512
    num_layers: int = 6
    freq_dim: int = 64
    num_clips: int = 16384
    batch: int = 128
    steps: int = 3600
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    warmup: int = 100
    decay_share: float = 0.45
    ema_decay: float = 0.99
    timestep_shift: float = 2.0
    caption_dropout: float = 0.1
    attribute_dropout: float = 0.1
    save_every: int = 100


class BuildConfig(Config):
    """The whole recipe; the defaults are the shipped weights'."""

    seed: int = 0
    vae: VaeConfig = VaeConfig()
    text: TextConfig = TextConfig()
    transformer: TransformerConfig = TransformerConfig()
