"""Which items train together at which step, as a function of the seed and the step alone."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from latentloom.wan.clip_size import ClipSize


@dataclass(frozen=True)
class StepBatch:
    """One step's items: all of one size, in the order in which they are dealt out.

    Args:
        items: their numbers in the store.
        micro_batch_size: how many of them one process computes at a time.
    """

    size: ClipSize
    items: tuple[int, ...]
    micro_batch_size: int

    def share(self, rank: int, num_replicas: int) -> list[tuple[int, ...]]:
        """The positions in `items` of each micro-batch of one replica; the replicas' shares are disjoint."""
        starts = range(0, len(self.items), self.micro_batch_size)
        chunks = [tuple(range(start, start + self.micro_batch_size)) for start in starts]
        per_replica = len(chunks) // num_replicas
        return chunks[rank * per_replica : (rank + 1) * per_replica]


@dataclass(frozen=True)
class BatchPlan:
    """Every step's batch of a run. Each epoch shows every item at least once.

    An incomplete last batch of a size is filled up with the first items of the same epoch's order, so nothing is
    dropped; `filled` tells how many that are.

    Args:
        sizes: of the store's items.
        items: those that are trained on.
        micro_batch_size, image_micro_batch_size: clips and images that a process computes at a time.
        num_chunks: micro-batches in a step: gradient accumulation steps times replicas.
        seed: of the orders.
    """

    sizes: Sequence[ClipSize]
    items: Sequence[int]
    micro_batch_size: int
    image_micro_batch_size: int
    num_chunks: int
    seed: int
    _by_size: dict[ClipSize, list[int]] = field(init=False, default_factory=dict)
    _orders: dict[int, list[StepBatch]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        grouped: dict[ClipSize, list[int]] = defaultdict(list)
        for item in self.items:
            grouped[self.sizes[item]].append(item)
        ordered = sorted(grouped.items(), key=lambda entry: _sort_key(entry[0]))
        self._by_size.update(ordered)

    @property
    def steps_per_epoch(self) -> int:
        return sum(-(-len(items) // self.global_batch(size)) for size, items in self._by_size.items())

    @property
    def filled(self) -> dict[ClipSize, int]:
        """By size, how many items an epoch shows a second time to complete the last batch."""
        counts = {size: -len(items) % self.global_batch(size) for size, items in self._by_size.items()}
        return {size: count for size, count in counts.items() if count}

    def global_batch(self, size: ClipSize) -> int:
        """Items of one step."""
        return self._micro(size) * self.num_chunks

    def small_buckets(self) -> dict[ClipSize, int]:
        """Sizes with fewer items than one step takes, and how many they have."""
        return {size: len(items) for size, items in self._by_size.items() if len(items) < self.global_batch(size)}

    def at(self, step: int) -> StepBatch:
        """The batch of a step, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders.clear()  # one epoch is held at a time
            self._orders[epoch] = self._epoch(epoch)
        return self._orders[epoch][place]

    def _epoch(self, epoch: int) -> list[StepBatch]:
        generator = torch.Generator().manual_seed((self.seed << 20) + epoch)
        batches = []
        for size, items in self._by_size.items():
            count = self.global_batch(size)
            order = [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]
            padded = [order[place % len(order)] for place in range(-(-len(order) // count) * count)]
            for start in range(0, len(padded), count):
                batches.append(StepBatch(size, tuple(padded[start : start + count]), self._micro(size)))
        return [batches[place] for place in torch.randperm(len(batches), generator=generator).tolist()]

    def _micro(self, size: ClipSize) -> int:
        return self.image_micro_batch_size if size.num_frames == 1 else self.micro_batch_size


def _sort_key(size: ClipSize) -> tuple[int, int, int]:
    return size.num_frames, size.height, size.width
