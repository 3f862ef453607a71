"""One vector per sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors.rows import RowIndex, row_numbers


@dataclass(frozen=True, eq=False)
class SentenceVector:
    """A batch of sentences, one vector each.

    Args:
        values: B vectors of D channels.

    Raises:
        ShapeError: not two dimensions.
    """

    values: Float[Tensor, "B D"]

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ShapeError(f"sentence vectors of shape {tuple(self.values.shape)}; give [B, D]")

    @classmethod
    def cat(cls, items: Sequence["SentenceVector"]) -> "SentenceVector":
        """Join batches into one, in order.

        Raises:
            ShapeError: no batches, or different widths.
        """
        if not items or len({item.dim for item in items}) != 1:
            raise ShapeError(f"vectors of widths {[item.dim for item in items]}; join one width, at least one batch")
        return cls(torch.cat([item.values for item in items]))

    def normalized(self) -> "SentenceVector":
        """The same directions at length 1; a zero vector stays zero."""
        values = self.values.float()
        unit = values / values.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return SentenceVector(unit.to(self.dtype))

    def cosine(self, other: "SentenceVector") -> Float[Tensor, "B"]:
        """Cosine of the angle to `other`, row by row, in float32; a batch of one meets every row.

        Raises:
            ShapeError: widths differ, or sizes differ and neither batch is of one.
        """
        if self.dim != other.dim or (len(self) != len(other) and 1 not in (len(self), len(other))):
            raise ShapeError(f"vectors {tuple(self.values.shape)} and {tuple(other.values.shape)} cannot be compared")
        mine = SentenceVector(self.values.float()).normalized().values
        theirs = SentenceVector(other.values.float()).normalized().values
        return (mine * theirs).sum(dim=-1).clamp(-1, 1)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "SentenceVector":
        """The same vectors on another device or in another dtype."""
        return SentenceVector(self.values.to(device=device, dtype=dtype))

    def __len__(self) -> int:
        return self.values.shape[0]

    def __getitem__(self, index: RowIndex) -> "SentenceVector":
        return SentenceVector(self.values[row_numbers(index, len(self), self.device)])

    @property
    def dim(self) -> int:
        """Channels per vector, D."""
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        return self.values.dtype
