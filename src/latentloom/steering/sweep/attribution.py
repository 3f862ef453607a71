"""How much of an effect each block, or each window of the schedule, carries: Shapley values over the parts of a sweep.

A unit's contribution depends on what is swapped already: late blocks may do nothing alone and everything after the
early ones. Its Shapley value is the mean of its contribution over all orders in which the units can be added, and the
values of all units add up to the effect of all of them together.

Source: Shapley 1953; estimated from sampled orders as in Castro, Gomez and Tejada 2009.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95

ValueOf = Callable[[Sequence[int]], Tensor]
"""The places of the units that are swapped, ascending -> the effect per pair, [B]."""


@dataclass(frozen=True, eq=False)
class Contributions:
    """What each of N units contributes, per pair and as means with 95 % intervals.

    Args:
        per_pair: [B, N]; each row adds up to the effect of all units together.
        low, high: [N], ends of the percentile bootstrap interval of the mean, over pairs.
    """

    per_pair: Float[Tensor, "B N"]
    low: Float[Tensor, "N"]
    high: Float[Tensor, "N"]

    @classmethod
    def of(cls, per_pair: Float[Tensor, "B N"], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> "Contributions":
        """The contributions with intervals from `num_resamples` draws of the pairs, with replacement."""
        values = per_pair.double()
        draws = torch.randint(len(values), (num_resamples, len(values)), generator=torch.Generator().manual_seed(seed))
        means = torch.stack([values[draw].mean(dim=0) for draw in draws])
        tail = (1 - CONFIDENCE) / 2
        low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
        centre = values.mean(dim=0)
        # where all pairs agree, means that are summed in another order miss theirs by rounding
        return cls(values.float(), low.minimum(centre).float(), high.maximum(centre).float())

    @property
    def mean(self) -> Float[Tensor, "N"]:
        return self.per_pair.double().mean(dim=0).float()

    def to_json(self) -> dict[str, Any]:
        """Means and both ends, one per unit."""
        return {"mean": self.mean.tolist(), "low": self.low.tolist(), "high": self.high.tolist()}


def shapley_values(value_of: ValueOf, num_units: int) -> Float[Tensor, "B N"]:
    """Exact Shapley values per pair, from the effects of all 2^N subsets.

    Args:
        value_of: the effect of any subset.
        num_units: N.
    """
    totals = []
    for unit in range(num_units):
        others = [other for other in range(num_units) if other != unit]
        total = torch.zeros_like(value_of([]).double())
        for size in range(num_units):
            weight = 1 / (num_units * math.comb(num_units - 1, size))
            for chosen in combinations(others, size):
                total += weight * (value_of(sorted([*chosen, unit])).double() - value_of(chosen).double())
        totals.append(total)
    return torch.stack(totals, dim=1).float()


def mean_contributions(value_of: ValueOf, orders: Sequence[Sequence[int]]) -> Float[Tensor, "B N"]:
    """Each unit's contribution when units are added in these orders, the mean over them.

    Args:
        value_of: the effect of the subsets that the orders walk.
        orders: each with all N units.
    """
    total = torch.zeros(len(value_of([])), len(orders[0]), dtype=torch.float64)
    for order in orders:
        before = value_of([]).double()
        for count, unit in enumerate(order, 1):
            after = value_of(sorted(order[:count])).double()
            total[:, unit] += after - before
            before = after
    return (total / len(orders)).float()
