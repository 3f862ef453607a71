"""What the VAE holds for a batch of clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors.rows import RowIndex, row_numbers


@dataclass(frozen=True, eq=False)
class VideoLatents:
    """A batch of clips on the VAE's grid.

    Args:
        values: B clips of C channels, T latent frames, H rows and W columns; an image has T = 1.

    Raises:
        ShapeError: not five dimensions.
    """

    values: Float[Tensor, "B C T H W"]

    def __post_init__(self) -> None:
        if self.values.ndim != 5:
            raise ShapeError(f"video latents of shape {tuple(self.values.shape)}; give [B, C, T, H, W]")

    @classmethod
    def from_image(cls, values: Float[Tensor, "B C H W"]) -> "VideoLatents":
        """Take images as clips of one frame."""
        if values.ndim != 4:
            raise ShapeError(f"image latents of shape {tuple(values.shape)}; give [B, C, H, W]")
        return cls(values.unsqueeze(2))

    @classmethod
    def cat(cls, items: Sequence["VideoLatents"]) -> "VideoLatents":
        """Join batches into one, in order.

        Raises:
            ShapeError: no batches, or clips of different shapes.
        """
        if not items or len({item.values.shape[1:] for item in items}) != 1:
            raise ShapeError(f"clips of shapes {[tuple(i.values.shape) for i in items]}; join one [C, T, H, W] or more")
        return cls(torch.cat([item.values for item in items]))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "VideoLatents":
        """The same clips on another device or in another dtype."""
        return VideoLatents(self.values.to(device=device, dtype=dtype))

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: RowIndex) -> "VideoLatents":
        return VideoLatents(self.values[row_numbers(index, len(self), self.device)])

    @property
    def num_frames(self) -> int:
        """Latent frames, T; 1 for an image."""
        return self.values.shape[2]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype
