"""Which rows make a batch: texts of similar length, the same ones after a resume and for any number of processes."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs.randomness import step_generator

#: Steps whose rows are drawn together and sorted by length: enough that a batch's texts differ by a token or two, few
#: enough that batches stay a random mixture.
POOLED_STEPS = 64


class LengthBuckets:
    """Row numbers of every step's batch, a pure function of the seed and the step.

    Epochs follow one another without a gap: each is a permutation of all rows, so that every row is seen once before
    any is seen again, and no row is dropped. Where the rows do not divide into batches, the batch at the end of an
    epoch is filled with rows of the next; those two parts are drawn at random, all other batches hold rows of similar
    length. A set smaller than a batch is repeated within it.

    Args:
        lengths: tokens of each row.
        batch_size: rows per step and process.
        num_processes: that share a step.
        seed: of the order.

    Raises:
        ConfigError: no rows, or a size below 1.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, num_processes: int, seed: int) -> None:
        if not len(lengths):
            raise ConfigError("there is no row to make batches of; give at least one pair")
        if batch_size < 1 or num_processes < 1:
            raise ConfigError(f"batches of {batch_size} rows in {num_processes} processes; give 1 or more of each")
        self.lengths = torch.as_tensor(np.asarray(lengths, dtype=np.int64))
        self.num_processes = num_processes
        self.step_size = batch_size * num_processes
        self.seed = seed
        self._order = lru_cache(maxsize=2)(self._draw_epoch)  # a step needs one epoch, or the end of one and the next

    def batch(self, step: int, rank: int = 0) -> list[int]:
        """The rows of one process in one step.

        Args:
            step: counted from 0; with gradient accumulation, of batches rather than of optimizer steps.
            rank: of the process: it takes every `num_processes`-th row of the step, so that all of them together take
                what a single process with the larger batch takes.

        Raises:
            ConfigError: a negative step, or a rank that there is not.
        """
        if step < 0 or not 0 <= rank < self.num_processes:
            raise ConfigError(f"step {step}, rank {rank}; steps start at 0, ranks end at {self.num_processes - 1}")
        return self._rows(step)[rank :: self.num_processes]

    def _rows(self, step: int) -> list[int]:
        """All rows of a step, of one epoch or of several."""
        num_rows = len(self.lengths)
        start, rows = step * self.step_size, []
        while len(rows) < self.step_size:
            epoch, first = divmod(start + len(rows), num_rows)
            rows += self._order(epoch)[first : first + self.step_size - len(rows)].tolist()
        return rows

    def _draw_epoch(self, epoch: int) -> Int64[Tensor, "N"]:
        """The rows of an epoch in their order: the rest of a batch that is begun, full batches, a batch's beginning."""
        num_rows = len(self.lengths)
        generator = step_generator(self.seed, epoch, "batches")
        drawn = torch.randperm(num_rows, generator=generator)
        begin = min(num_rows, -epoch * num_rows % self.step_size)
        num_full = (num_rows - begin) // self.step_size
        end = begin + num_full * self.step_size
        edges = [*range(begin, end, POOLED_STEPS * self.step_size), end]
        full = [
            batch
            for first, last in pairwise(edges)
            for batch in self._by_length(drawn[first:last], generator).split(self.step_size)
        ]
        return torch.cat([drawn[:begin], *full, drawn[end:]])

    def _by_length(self, rows: Int64[Tensor, "P"], generator: torch.Generator) -> Int64[Tensor, "P"]:
        """The rows cut into batches of similar length, the batches in random order."""
        batches = rows[self.lengths[rows].argsort(stable=True)].view(-1, self.step_size)
        return batches[torch.randperm(len(batches), generator=generator)].flatten()
