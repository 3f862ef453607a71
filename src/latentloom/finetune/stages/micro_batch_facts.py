"""What the blocks of a stage need to know of a micro-batch, found once and not by every block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Rotary = tuple[Tensor, Tensor]


class MicroBatchFacts:
    """Numbers that travel in tensors, and the rotary embedding that follows from them.

    Reading a number makes the processor wait for the accelerator, and a rotary embedding per block would be kept by
    autograd per block. Within a stage a tensor without gradients passes from layer to layer as the same object; what
    was found of it holds until another one comes.

    Args:
        rope: the transformer's.
    """

    def __init__(self, rope: nn.Module) -> None:
        self._rope = rope
        self._seed: tuple[Tensor | None, int] = (None, 0)
        self._grid: tuple[Tensor | None, list[int]] = (None, [])
        self._rotary: tuple[Sequence[int], Rotary] | None = None

    def seed(self, seed: Tensor) -> int:
        """The number in a tensor of one."""
        if self._seed[0] is not seed:
            self._seed = seed, int(seed)
        return self._seed[1]

    def grid(self, grid: Tensor) -> list[int]:
        """The latents' frames, rows and columns, from a tensor of three."""
        if self._grid[0] is not grid:
            self._grid = grid, grid.tolist()
        return self._grid[1]

    def rotary(self, grid: Tensor) -> Rotary:
        """The rotary embedding of latents of this size, on the grid's device."""
        sizes = self.grid(grid)
        if self._rotary is None or self._rotary[0] != sizes:
            self._rotary = sizes, self._rope(torch.empty(1, device=grid.device).expand(1, 1, *sizes))
        return self._rotary[1]
