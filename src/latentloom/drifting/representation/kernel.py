"""What drifting's kernel would see if real samples of a class were the generated ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.diagnostics import kernel_statistics
from latentloom.runs.randomness import step_generator

NUM_GENERATED = 4
NUM_POSITIVES = 8
NUM_NEGATIVES = 8
MAX_CLASSES = 64
PERCENTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, eq=False)
class KernelView:
    """The kernel's figures, and the distances they come from.

    Attributes:
        statistics: see `kernel_statistics`; and "kernel/distance_<pos|neg>_p<10..90>".
        within: distances of samples from others of their class, in units of the mean distance.
        across: from samples of other classes.
        num_targets: others that a sample sees: of its class that stand for generated ones, that attract, that repel.
    """

    statistics: dict[str, float]
    within: Float[Tensor, "W"]
    across: Float[Tensor, "A"]
    num_targets: int


def view_kernel(
    vectors: Float[Tensor, "N D"], labels: Int64[Tensor, "N"], temperatures: Sequence[float], *, seed: int = 0
) -> KernelView | None:
    """The kernel on real samples: of every class some stand for generated ones, others attract, other classes repel.

    Args:
        vectors: in which distances are taken.
        labels: class of each.
        temperatures: of the kernel.
        seed: of the draws.

    Returns:
        None where no class has enough members: at least three.
    """
    drawn = _draw(labels.cpu(), step_generator(seed, 0, "kernel"))
    if drawn is None:
        return None
    gen, pos, neg = (vectors[rows] for rows in drawn)
    within, across = torch.cdist(gen.double(), pos.double()), torch.cdist(gen.double(), neg.double())
    scale = torch.cat([within.flatten(), across.flatten()]).mean().clamp_min(torch.finfo(torch.float32).tiny)
    within, across = within.flatten() / scale, across.flatten() / scale
    statistics = kernel_statistics(gen, pos, neg, temperatures=temperatures)
    points = torch.tensor(PERCENTILES, dtype=torch.float64)
    for name, distances in (("pos", within), ("neg", across)):
        for percentile, value in zip(PERCENTILES, distances.quantile(points).tolist(), strict=True):
            statistics[f"kernel/distance_{name}_p{round(100 * percentile)}"] = value
    num_targets = gen.shape[1] - 1 + pos.shape[1] + neg.shape[1]
    return KernelView(statistics, within.float(), across.float(), num_targets)


def _draw(
    labels: Int64[Tensor, "N"], generator: torch.Generator
) -> tuple[Int64[Tensor, "C G"], Int64[Tensor, "C P"], Int64[Tensor, "C U"]] | None:
    numbers, counts = labels.unique(return_counts=True)
    large = counts >= min(NUM_GENERATED + NUM_POSITIVES, int(counts.max()))
    if int(counts.max()) < 3 or len(numbers) < 2:
        return None
    num_gen = max(1, min(NUM_GENERATED, int(counts[large].min()) // 3))
    num_pos = min(NUM_POSITIVES, int(counts[large].min()) - num_gen)
    num_neg = min(NUM_NEGATIVES, len(labels) - int(counts[large].max()))
    chosen = numbers[large]
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:MAX_CLASSES]]
    rows: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for number in chosen.tolist():
        members, others = torch.nonzero(labels == number).flatten(), torch.nonzero(labels != number).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        rows[0].append(members[:num_gen])
        rows[1].append(members[num_gen : num_gen + num_pos])
        rows[2].append(others[torch.randperm(len(others), generator=generator)[:num_neg]])
    gen, pos, neg = (torch.stack(part) for part in rows)
    return gen, pos, neg
