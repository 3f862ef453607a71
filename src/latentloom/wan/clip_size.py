"""The sizes of clips a Wan model can make, and of the latents they come from."""

from __future__ import annotations

from dataclasses import dataclass

from latentloom.errors import ConfigError
from latentloom.wan.facts import ModelFacts


@dataclass(frozen=True)
class ClipSize:
    """Frames, height and width in pixels of one clip."""

    num_frames: int
    height: int
    width: int

    @classmethod
    def for_model(
        cls, facts: ModelFacts, num_frames: int | None = None, height: int | None = None, width: int | None = None
    ) -> ClipSize:
        """The size asked for, with the model's default where it is None.

        Raises:
            ConfigError: the model cannot make it; the message names the nearest sizes that it can.
        """
        size = cls(
            facts.num_frames if num_frames is None else num_frames,
            facts.height if height is None else height,
            facts.width if width is None else width,
        )
        LatentGrid.of(facts).check(size)
        return size


@dataclass(frozen=True)
class LatentGrid:
    """How a model's VAE and patches divide a clip.

    Args:
        channels: latent channels of the VAE.
        temporal_stride: frames per latent frame, after the first frame, which stands alone.
        spatial_stride: pixels per latent position.
        patch: latent frames, rows and columns per transformer token.
    """

    channels: int
    temporal_stride: int
    spatial_stride: int
    patch: tuple[int, int, int]

    @classmethod
    def of(cls, facts: ModelFacts) -> LatentGrid:
        """The grid of a model; every known model has patches of 1 by 2 by 2, whatever else its sizes."""
        patch = facts.transformer.patch_size if facts.transformer is not None else (1, 2, 2)
        return cls(facts.latent_channels, facts.temporal_stride, facts.spatial_stride, patch)

    def check(self, size: ClipSize) -> None:
        """Accept a size that divides evenly into tokens.

        Raises:
            ConfigError: it does not; the message names the nearest sizes that do.
        """
        _check_frames(size.num_frames, self.temporal_stride)
        _check_side("height", size.height, self.spatial_stride * self.patch[1])
        _check_side("width", size.width, self.spatial_stride * self.patch[2])

    def shape(self, size: ClipSize) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of a clip's latents."""
        self.check(size)
        frames = (size.num_frames - 1) // self.temporal_stride + 1
        return self.channels, frames, size.height // self.spatial_stride, size.width // self.spatial_stride

    def num_tokens(self, size: ClipSize) -> int:
        """Tokens the transformer sees per clip."""
        _, frames, rows, columns = self.shape(size)
        return (frames // self.patch[0]) * (rows // self.patch[1]) * (columns // self.patch[2])


def _check_frames(num_frames: int, stride: int) -> None:
    if num_frames >= 1 and num_frames % stride == 1:
        return
    below = max(1, (num_frames - 1) // stride * stride + 1)
    raise ConfigError(f"num_frames={num_frames} is not {stride}k+1; use {_either(below, below + stride, num_frames)}")


def _check_side(name: str, pixels: int, multiple: int) -> None:
    if pixels >= multiple and pixels % multiple == 0:
        return
    below = max(multiple, pixels // multiple * multiple)
    nearest = _either(below, below + multiple, pixels)
    raise ConfigError(f"{name}={pixels} is not a multiple of {multiple}, as this model needs; use {nearest}")


def _either(below: int, above: int, given: int) -> str:
    return f"{below} or {above}" if given > below else str(below)
