"""Means with percentile bootstrap intervals, resampled over test pairs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A mean over test pairs with the interval that holds it at the given confidence (95 % by default)."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Mean and both ends."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def estimate(
    values: Float[Tensor, "B"], seed: int = 0, num_resamples: int = NUM_RESAMPLES, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of one figure per pair, with its percentile interval.

    A difference between two adapters on the same pairs is estimated from the difference of their values: paired.

    Args:
        values: at least one.
        seed: of the resamples; equal seeds and sizes draw equal pairs.
        num_resamples: sets of B pairs drawn with replacement.
        confidence: share of the resampled means inside the interval.
    """
    return estimates({"": values}, seed, num_resamples, confidence)[""]


def estimates(
    figures: Mapping[str, Float[Tensor, "B"]],
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> dict[str, Estimate]:
    """`estimate` of several figures of the same pairs at once, from the same resamples."""
    values = torch.stack([column.detach().cpu().double() for column in figures.values()], dim=1)
    means = resampled_means(values, seed, num_resamples)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    centre = values.mean(dim=0)
    # where all values are equal, means that are summed in another order miss theirs by rounding
    low, high = low.minimum(centre), high.maximum(centre)
    rows = zip(figures, centre.tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Estimate(mean, bottom, top) for name, mean, bottom, top in rows}


def resampled_means(
    values: Float[Tensor, "B M"], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Float[Tensor, "R M"]:
    """Means of M figures over R sets of B pairs, each drawn with replacement from the B pairs.

    Args:
        values: figures per pair; a resample takes whole rows, so that figures stay paired.
        seed: of the draws.
        num_resamples: R.
    """
    num_pairs = len(values)
    generator = torch.Generator().manual_seed(seed)
    means = []
    for start in range(0, num_resamples, step := max(1, _CELLS_AT_ONCE // num_pairs)):
        drawn = torch.randint(num_pairs, (min(step, num_resamples - start), num_pairs), generator=generator)
        # how often each pair was drawn, so that one matrix product gives all means of all figures
        times = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(drawn.shape, dtype=torch.float64)
        )
        means.append(times @ values.double() / num_pairs)
    return torch.cat(means)
