"""Which patches are given at each corruption level: how many, and nested masks of them."""

from itertools import pairwise
from typing import Literal, assert_never

import torch
from jaxtyping import Bool
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError

Schedule = Literal["geom", "linear", "doubling"]


def level_counts(num_patches: int, num_levels: int, min_given: int, schedule: Schedule) -> tuple[int, ...]:
    """How many patches are given at each level: fewer than all at the first, `min_given` at the last.

    Every level has really fewer than the one before: where rounding would repeat a count, the earlier level keeps one
    patch more.

    Args:
        num_patches: patches of an image, N.
        num_levels: number of counts, L.
        min_given: given patches at the last level.
        schedule: "geom" divides by one factor from level to level, "linear" takes one number away, both counted from
            all N patches; "doubling" has exactly twice as many at each earlier level.

    Raises:
        ConfigError: no patch would be given or none missing, or there are more levels than different counts.
    """
    if not 1 <= min_given < num_patches:
        raise ConfigError(f"{min_given} given patches of {num_patches}; give at least 1 and fewer than all")
    if num_levels < 1:
        raise ConfigError(f"{num_levels} levels; give at least 1")
    if schedule == "doubling":
        return _doubled_counts(num_patches, num_levels, min_given)
    if num_levels > num_patches - min_given:
        raise ConfigError(
            f"{num_levels} levels do not fit between {num_patches} patches and {min_given} given; "
            f"give at most {num_patches - min_given} levels"
        )
    counts = [min_given]
    for level in range(num_levels - 2, -1, -1):
        wanted = round(_ideal_count(num_patches, min_given, (level + 1) / num_levels, schedule))
        counts.append(min(max(wanted, counts[-1] + 1), num_patches - 1 - level))
    return tuple(reversed(counts))


def nested_masks(
    counts: tuple[int, ...], num_patches: int, batch: int, generator: torch.Generator
) -> Bool[Tensor, "L {batch} {num_patches}"]:
    """Draw which patches are given, for each image of a batch on its own; a level is a strict subset of the one before.

    Args:
        counts: given patches of each level, falling, as `level_counts` gives them.
        num_patches: patches of an image, N.
        batch: images, B.
        generator: decides the draw; the masks are made on its device.

    Returns:
        True where a patch is given.

    Raises:
        ShapeError: a count is not smaller than the one before, below 1 or above N.
    """
    if not counts or any(later >= earlier for earlier, later in pairwise((num_patches + 1, *counts, 0))):
        raise ShapeError(
            f"counts {list(counts)} of {num_patches} patches; give falling numbers from {num_patches} to 1"
        )
    order = torch.rand(batch, num_patches, generator=generator, device=generator.device).argsort(dim=1)
    rank = order.argsort(dim=1)  # one draw per image; every level keeps the patches that come first in it
    return rank < torch.tensor(counts, device=rank.device)[:, None, None]


def _ideal_count(num_patches: int, min_given: int, share: float, schedule: Literal["geom", "linear"]) -> float:
    match schedule:
        case "geom":
            return num_patches * (min_given / num_patches) ** share
        case "linear":
            return num_patches + (min_given - num_patches) * share
        case _:
            assert_never(schedule)


def _doubled_counts(num_patches: int, num_levels: int, min_given: int) -> tuple[int, ...]:
    most_levels = ((num_patches - 1) // min_given).bit_length()  # min_given * 2^(levels - 1) < num_patches
    if num_levels > most_levels:
        raise ConfigError(
            f"{num_levels} levels that double from {min_given} given patches pass {num_patches}; "
            f"give at most {most_levels} levels or another schedule"
        )
    return tuple(min_given << level for level in reversed(range(num_levels)))
