"""How strongly two prompts must be moved until they differ by as much as was asked for."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError

GRID = 33  # strengths tried before halving: along some moves the difference falls before it rises
HALVINGS = 30
EDGE = 1e-5  # relative; a difference measured in float32 may lie this far beyond the largest one
SAME = 1e-5  # what rounding makes of the difference of equal prompts
TOLERANCE = 1e-2  # relative; further off, a target was jumped over, not met


def strength_for(
    targets: Float[Tensor, "B"], difference_at: Callable[[Float[Tensor, "B 1"]], Float[Tensor, "B"]], move: str
) -> Float[Tensor, "B"]:
    """The smallest strength in 0..1 at which each prompt's difference is its target.

    Args:
        targets: relative differences.
        difference_at: the relative differences at given strengths; in float64 on the CPU.
        move: what is done, for messages.

    Raises:
        ConfigError: no strength leads to a target; the message holds what can be reached.
    """
    grid = torch.linspace(0, 1, GRID, dtype=torch.float64)
    values = torch.stack([difference_at(strength.expand(len(targets), 1)) for strength in grid])
    smallest, largest = values.amin(dim=0), values.amax(dim=0)
    outside = (targets < smallest * (1 - EDGE)) | (targets > largest * (1 + EDGE))
    for row in outside.nonzero().flatten().tolist():
        raise _unreachable(targets, row, move, float(smallest[row]), float(largest[row]))
    aims = targets.double().clamp(smallest, largest)
    above = values >= aims
    crossing = above[1:] != above[:-1]
    before = crossing.int().argmax(dim=0)
    low, high, rises = grid[before], grid[before + 1], above[before + 1, torch.arange(len(targets))]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = (difference_at(middle.unsqueeze(1)) >= aims) == rises
        low, high = low.where(beyond, middle), middle.where(beyond, high)
    needs_none = (values[0] == aims) | ~crossing.any(dim=0)
    strengths = high.where(~needs_none, 0)
    reached = difference_at(strengths.unsqueeze(1))
    for row in ((reached - aims).abs() > TOLERANCE * aims).nonzero().flatten().tolist():
        raise _jumped(targets, row, move, float(difference_at(low.unsqueeze(1))[row]), float(reached[row]))
    return strengths


def _unreachable(targets: Tensor, row: int, move: str, smallest: float, largest: float) -> ConfigError:
    asked = _asked(targets, row, move)
    if largest < SAME:
        return ConfigError(f"{asked}: the two do not differ, so there is no direction to move along")
    if targets[row] > largest:
        return ConfigError(f"{asked}: it cannot be more than {largest:.4g}; give less, or another way")
    return ConfigError(f"{asked}: it cannot be less than {smallest:.4g}; give more, or another way")


def _jumped(targets: Tensor, row: int, move: str, below: float, above: float) -> ConfigError:
    reach = f"{below:.4g} or {above:.4g}, as their tokens are parallel"
    return ConfigError(f"{_asked(targets, row, move)}: nearest are {reach}; give one of these, or another way")


def _asked(targets: Tensor, row: int, move: str) -> str:
    which = f" of prompt {row + 1} of {len(targets)}" if len(targets) > 1 else ""
    return f"{move} to a relative difference of {float(targets[row]):.4g}{which}"
