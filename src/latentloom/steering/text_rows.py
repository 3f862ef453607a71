"""The text that a block's cross-attention reads, as rows of the model's width, with or without its padding folded."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentloom.wan.folded_padding import key_bias


@dataclass(frozen=True, eq=False)
class TextRows:
    """A batch of contexts.

    Args:
        rows: the texts' rows, then rows of padding, all of them equal.
        lengths: true rows of each text.
        folded_from: the padded length that the last row stands for (see `wan.folded_padding`); None where every row
            of padding is there.
    """

    rows: Float[Tensor, "B K D"]
    lengths: Int[Tensor, "B"]
    folded_from: int | None = None

    @cached_property
    def bias(self) -> Float[Tensor, "B 1 1 K"] | None:
        """What cross-attention adds to the logits of these rows; None where nothing."""
        if self.folded_from is None:
            return None
        return key_bias(self.lengths, self.rows.shape[1] - 1, self.folded_from).to(self.rows.dtype)

    @cached_property
    def is_true(self) -> Bool[Tensor, "B K"]:
        """Which rows are the texts' own."""
        return torch.arange(self.rows.shape[1], device=self.rows.device) < self.lengths.unsqueeze(1)


def aligned(first: TextRows, second: TextRows) -> tuple[TextRows, TextRows]:
    """Both with as many rows as the longer has; the shorter gets more rows of padding, which changes nothing."""
    num_rows = max(first.rows.shape[1], second.rows.shape[1])
    return _widened(first, num_rows), _widened(second, num_rows)


def _widened(text: TextRows, num_rows: int) -> TextRows:
    missing = num_rows - text.rows.shape[1]
    if missing == 0:
        return text
    padding = text.rows[:, -1:].expand(-1, missing, -1)
    return replace(text, rows=torch.cat([text.rows, padding], dim=1))
