"""Means with the 95 % intervals that the choice of samples gives them, and figures of several trainings."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from latentloom.drifting.distances import Estimate

NUM_RESAMPLES = 1000
_TAIL = 0.025


def ratio_estimate(
    numerators: Shaped[Tensor, "N"], denominators: Shaped[Tensor, "N"], times: Float[Tensor, "R N"]
) -> Estimate:
    """The sum of the one over the sum of the other, with the percentile interval over resamples of the rows.

    Args:
        numerators: of N samples.
        denominators: of the same samples, 0 or more, not all 0; ones give a mean.
        times: how often each sample is in each of R resamples, as `distances.resample` draws them.
    """
    columns = torch.stack([numerators.double(), denominators.double()], dim=1)
    top, bottom = columns.sum(dim=0)
    value = float(top / bottom)
    sums = times @ columns
    kept = sums[sums[:, 1] > 0]
    low, high = (kept[:, 0] / kept[:, 1]).quantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64)).tolist()
    return Estimate(value, min(low, value), max(high, value))


def over_seeds(estimates: Sequence[Estimate]) -> Estimate:
    """The mean over trainings with other seeds, with the smallest and the largest; intervals of each are dropped."""
    values = [estimate.value for estimate in estimates]
    return Estimate(sum(values) / len(values), min(values), max(values))
