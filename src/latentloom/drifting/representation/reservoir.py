"""A bounded sample of a stream of unknown length, every row with the same chance."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs.randomness import step_generator


class Reservoir:
    """Keeps `size` rows of all that are added, drawn with equal chances; what it keeps depends on seed and order alone.

    Args:
        size: most rows that are kept.
        seed: of the draws.

    Attributes:
        num_seen: rows that were added.

    Raises:
        ConfigError: a size below 1.

    Source: Vitter 1985, "Random Sampling with a Reservoir", algorithm R.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ConfigError(f"a sample of {size} rows; keep at least 1")
        self.size = size
        self.num_seen = 0
        self._rows: Tensor | None = None
        self._generator = step_generator(seed, 0, "reservoir")

    def add(self, rows: Float[Tensor, "B D"]) -> None:
        """Let rows take part in the draw."""
        if self._rows is None:
            # grows by doubling, so that a short stream takes little
            self._rows = rows.new_empty(0, rows.shape[1])
        for row in rows:
            self.num_seen += 1
            if self.num_seen <= self.size:
                self._append(row)
                continue
            # drawn in float64: a stream has far fewer rows than it tells apart
            place = int(torch.rand((), dtype=torch.float64, generator=self._generator) * self.num_seen)
            if place < self.size:
                self._rows[place] = row

    def rows(self) -> Float[Tensor, "N D"]:
        """What is kept: all rows of a short stream, in their order."""
        if self._rows is None:
            raise ConfigError("nothing was added to the sample")
        return self._rows[: min(self.num_seen, self.size)].clone()

    def _append(self, row: Float[Tensor, "D"]) -> None:
        assert self._rows is not None
        if self.num_seen > len(self._rows):
            grown = row.new_empty(min(self.size, max(256, 2 * len(self._rows))), len(row))
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[self.num_seen - 1] = row
