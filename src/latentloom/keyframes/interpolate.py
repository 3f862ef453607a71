"""Missing patches filled from the given ones by inverse-distance weights."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError


def interpolate_idw(
    tokens: Float[Tensor, "B N D"], given: Bool[Tensor, "B N"], grid: tuple[int, int], power: float = 2.0
) -> Float[Tensor, "B N D"]:
    """Fill each missing patch with the mean of all given ones, weighted by 1 / distance^power.

    Args:
        tokens: N patches of D values, row by row; given ones come back bit for bit, the values at missing places are
            never read.
        given: True where a patch is given; each image has its own.
        grid: rows and columns of patches, N = rows * columns; the distance between neighbours is 1.
        power: how fast weights fall; 0 is the plain mean, a large number takes the nearest patch.

    Raises:
        ShapeError: the shapes do not fit together, or an image has no given patch.
        ConfigError: a power below 0, or so large that far patches would weigh nothing in float32.

    Source: "A two-dimensional interpolation function for irregularly-spaced data", Proceedings of the 23rd ACM national
    conference, 1968.
    """
    check_patches(tokens, given, grid)
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    weights = _weights(grid, power, dtype, tokens.device)
    known = tokens.to(dtype).masked_fill(~given.unsqueeze(-1), 0)
    with torch.autocast(tokens.device.type, enabled=False):  # it would take the products in bfloat16
        # the weights are symmetric, so one matrix product serves all images whatever their masks
        filled = (known.mT @ weights).mT / (given.to(dtype) @ weights).unsqueeze(-1)
    return torch.where(given.unsqueeze(-1), tokens, filled.to(tokens.dtype))


def check_patches(tokens: Float[Tensor, "B N D"], given: Bool[Tensor, "B N"], grid: tuple[int, int]) -> None:
    """Make sure that tokens, mask and grid fit together and that each image has something to fill from.

    Raises:
        ShapeError: they do not, or an image has no given patch.
    """
    if tokens.shape[:2] != given.shape or tokens.shape[1] != grid[0] * grid[1]:
        raise ShapeError(
            f"tokens {tuple(tokens.shape)}, mask {tuple(given.shape)} and a grid of {grid[0]}x{grid[1]} do not fit; "
            "give [B, N, D], [B, N] and N = rows * columns"
        )
    empty = (~given.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ShapeError(f"image {empty[0]} of the batch has no given patch; give at least one")


def _weights(grid: tuple[int, int], power: float, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "N N"]:
    rows, columns = grid
    farthest = math.hypot(rows - 1, columns - 1)
    smallest = torch.finfo(dtype).tiny * 1e8  # leaves room for the products with tokens
    if not (0 <= power < math.inf) or power * math.log(max(farthest, 1.0)) > -math.log(smallest):
        most = -math.log(smallest) / math.log(farthest) if farthest > 1 else math.inf
        raise ConfigError(f"power = {power} on a grid of {rows}x{columns}; give 0 to {most:.0f}")
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    distance = torch.hypot(
        torch.arange(rows, dtype=dtype, device=device).unsqueeze(1), torch.arange(columns, dtype=dtype, device=device)
    )
    # a patch never fills itself, so its own weight is of no matter; 1 keeps the sums above 0
    by_offset = distance.clamp_min(1).pow(-power)
    return by_offset[(row.unsqueeze(1) - row).abs(), (column.unsqueeze(1) - column).abs()]
