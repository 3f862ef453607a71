"""Figures with the 95 % intervals that the choice of samples gives them, and figures of several trainings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

NUM_RESAMPLES = 1000
_TAIL = 0.025


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95 % interval, or, of several seeds, their mean with the smallest and largest."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Value and both ends."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resample(num_rows: int, num_resamples: int, seed: int) -> Float[Tensor, "R N"]:
    """How often each row is in each of R sets of `num_rows` rows that are drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(num_rows, (num_resamples, num_rows), generator=generator)
    counts = torch.zeros(num_resamples, num_rows, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def ratio_estimate(
    numerators: Shaped[Tensor, "N"], denominators: Shaped[Tensor, "N"], times: Float[Tensor, "R N"]
) -> Estimate:
    """The sum of the one over the sum of the other, with the percentile interval over resamples of the rows.

    Args:
        numerators: of N samples.
        denominators: of the same samples, 0 or more, not all 0; ones give a mean.
        times: how often each sample is in each of R resamples, as `resample` draws them.
    """
    columns = torch.stack([numerators.double(), denominators.double()], dim=1)
    return sums_estimate(columns, lambda sums: sums[:, 0] / sums[:, 1], times)


def sums_estimate(
    columns: Float[Tensor, "N M"],
    figure: Callable[[Float[Tensor, "_ M"]], Float[Tensor, "_"]],
    times: Float[Tensor, "R N"],
) -> Estimate:
    """A figure of column sums, with the percentile interval over resamples of the rows.

    Args:
        columns: M statistics of N samples.
        figure: of rows of summed statistics; resamples for which it is not finite are left out.
        times: how often each sample is in each of R resamples, as `resample` draws them.
    """
    value = float(figure(columns.double().sum(dim=0, keepdim=True)))
    found = figure(times @ columns.double())
    kept = found[found.isfinite()]
    if not len(kept):
        return Estimate(value, value, value)
    low, high = kept.quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)).tolist()
    # few samples or equal ones: the figure itself may lie outside its resamples
    return Estimate(value, min(low, value), max(high, value))


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over trainings with other seeds, with the smallest and the largest; intervals of each are dropped."""
    values = [estimate.value for estimate in estimates]
    return Estimate(sum(values) / len(values), min(values), max(values))
