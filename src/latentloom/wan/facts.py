"""What is fixed about each known member of the Wan family: dimensions, strides and sampling defaults.

Sources: the configs of the official repository (wan/configs) for TI2V-5B and T2V-A14B, the Wan 2.1 report and its
readme's command lines for T2V-1.3B, and the prototype in the foundation issue for MicroWan's sampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from latentloom.errors import ConfigError


@dataclass(frozen=True)
class TransformerDims:
    """Sizes of one diffusion transformer; all of them can be read off a checkpoint except the number of heads."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_channels: int
    out_channels: int
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = (1, 2, 2)

    @property
    def num_parameters(self) -> int:
        """The transformer's parameter count, from the sizes alone."""
        d = self.dim
        attention = 4 * (d * d + d) + 2 * d
        block = 2 * attention + (2 * d * self.ffn_dim + self.ffn_dim + d) + 2 * d + 6 * d
        patch = math.prod(self.patch_size)
        embedders = (self.text_dim * d + d) + (self.freq_dim * d + d) + 2 * (d * d + d) + 6 * (d * d + d)
        ends = (self.in_channels * patch * d + d) + (self.out_channels * patch * (d + 1)) + 2 * d
        return self.num_layers * block + embedders + ends


@dataclass(frozen=True)
class TextEncoderDims:
    """Sizes of one UMT5 encoder."""

    vocab_size: int = 256384
    dim: int = 4096
    attention_dim: int = 4096
    ffn_dim: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32


@dataclass(frozen=True)
class ModelFacts:
    """What generation must know about a model besides its weights.

    Attributes:
        transformer, text_encoder: sizes; None for MicroWan, whose sizes are in its config files.
        vae: which autoencoder, "wan2.1", "wan2.2" or "micro".
        temporal_stride, spatial_stride: frames and pixels per latent step.
        guidance: the classifier-free guidance scale; for two experts a tuple in the order of `experts`.
        boundary: with two experts, the share of the noise scale from which on the high-noise expert works.
        experts: ("high", "low") or (); the order in which they run.
        height, width, num_frames: the default clip.
    """

    key: str
    title: str
    transformer: TransformerDims | None
    text_encoder: TextEncoderDims | None
    vae: str
    latent_channels: int
    spatial_stride: int
    fps: int
    shift: float
    steps: int
    guidance: float | tuple[float, float]
    height: int
    width: int
    num_frames: int
    temporal_stride: int = 4
    boundary: float | None = None
    experts: tuple[str, ...] = ()


KNOWN: dict[str, ModelFacts] = {
    facts.key: facts
    for facts in (
        ModelFacts(
            key="ti2v-5b",
            title="Wan2.2-TI2V-5B",
            transformer=TransformerDims(3072, 14336, 24, 30, in_channels=48, out_channels=48),
            text_encoder=TextEncoderDims(),
            vae="wan2.2",
            latent_channels=48,
            spatial_stride=16,
            fps=24,
            shift=5.0,
            steps=50,
            guidance=5.0,
            height=704,
            width=1280,
            num_frames=121,
        ),
        ModelFacts(
            key="t2v-a14b",
            title="Wan2.2-T2V-A14B",
            transformer=TransformerDims(5120, 13824, 40, 40, in_channels=16, out_channels=16),
            text_encoder=TextEncoderDims(),
            vae="wan2.1",
            latent_channels=16,
            spatial_stride=8,
            fps=16,
            shift=12.0,
            steps=40,
            guidance=(4.0, 3.0),
            height=720,
            width=1280,
            num_frames=81,
            boundary=0.875,
            experts=("high", "low"),
        ),
        ModelFacts(
            key="t2v-1.3b",
            title="Wan2.1-T2V-1.3B",
            transformer=TransformerDims(1536, 8960, 12, 30, in_channels=16, out_channels=16),
            text_encoder=TextEncoderDims(),
            vae="wan2.1",
            latent_channels=16,
            spatial_stride=8,
            fps=16,
            shift=8.0,
            steps=50,
            guidance=6.0,
            height=480,
            width=832,
            num_frames=81,
        ),
        ModelFacts(
            key="micro",
            title="MicroWan",
            transformer=None,
            text_encoder=None,
            vae="micro",
            latent_channels=16,
            spatial_stride=8,
            fps=8,
            shift=3.0,
            steps=20,
            guidance=3.0,
            height=48,
            width=48,
            num_frames=9,
        ),
    )
}


def get(key: str) -> ModelFacts:
    """The facts of a known model.

    Args:
        key: "ti2v-5b", "t2v-a14b", "t2v-1.3b" or "micro"; capitals do not matter.

    Raises:
        ConfigError: no such model.
    """
    found = KNOWN.get(key.lower())
    if found is None:
        raise ConfigError(f"no model is called {key!r}; known are {', '.join(KNOWN)}")
    return found


def identify(dims: TransformerDims, num_experts: int = 1) -> tuple[ModelFacts, bool]:
    """The known model with these transformer sizes, or the nearest one, and whether it is an exact match.

    The nearest model lends its sampling defaults; the sizes returned are always the ones given. One expert of a
    two-expert model is that model: a single ComfyUI file holds one.
    """
    sized = [facts for facts in KNOWN.values() if facts.transformer and (num_experts < 2 or facts.experts)]
    for facts in sized:
        if facts.transformer == dims:
            return facts, True
    nearest = min(sized, key=lambda facts: _distance(facts.transformer, dims))
    lent = replace(
        nearest,
        key="unknown",
        title=f"unknown, nearest {nearest.title}",
        transformer=dims,
        text_encoder=None,
        latent_channels=dims.out_channels,
    )
    if num_experts < 2 and isinstance(lent.guidance, tuple):
        lent = replace(lent, guidance=lent.guidance[0], boundary=None, experts=())
    return lent, False


def _distance(known: TransformerDims | None, dims: TransformerDims) -> float:
    """How far two models' sizes are apart: the summed absolute log ratios; infinite without sizes."""
    if known is None:
        return math.inf
    numbers = [field.name for field in fields(dims) if field.name != "patch_size"]
    return sum(abs(math.log(max(getattr(known, name), 1) / max(getattr(dims, name), 1))) for name in numbers)
