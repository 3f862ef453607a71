"""Missing patches filled by edge-aware harmonic interpolation: smooth, but not across edges of the image."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.keyframes.conjugate_gradients import solve_on_grid
from latentloom.keyframes.grid_graph import GridEdges, degrees, edge_list, laplacian, neighbour_pull
from latentloom.keyframes.interpolate import interpolate_idw

DENSE_PATCHES = 256  # here both solvers take about as long; beyond, the cube of the number of patches tells
WEAKEST_EDGE = 1e-3  # weaker ones would leave a patch at the mercy of float32's rounding

Solver = Literal["cholesky", "conjugate_gradients"]
Correction = Callable[[Float[Tensor, "B R C D"]], Float[Tensor, "B R C D"]]


@torch.no_grad()
def interpolate_harmonic(
    tokens: Float[Tensor, "B N D"],
    given: Bool[Tensor, "B N"],
    grid: tuple[int, int],
    *,
    sigma_feature: float,
    sigma_space: float,
    lambda_reg: float,
    power: float = 2.0,
    solver: Solver | None = None,
) -> Float[Tensor, "B N D"]:
    """Fill missing patches so that each is the weighted mean of its four neighbours, starting from the IDW fill f.

    Solves (L + lambda_reg) x = lambda_reg f over the missing patches, with x fixed at the given ones. L is the
    Laplacian of the grid whose edges weigh exp(-mean (f_i - f_j)^2 / 2 sigma_feature^2) * exp(-1 / 2 sigma_space^2),
    the first factor at least 0.001. Everything is in float32, in float64 for float64 tokens. No gradient flows.

    Args:
        tokens: N patches of D values, row by row; given ones come back bit for bit, the values at missing places are
            never read.
        given: True where a patch is given; each image has its own.
        grid: rows and columns of patches, N = rows * columns.
        sigma_feature: difference per value at which an edge weakens; infinity ignores the image's edges.
        sigma_space: the same for the distance, which is 1 between neighbours; as that is the same for all edges, it
            only weakens L against lambda_reg.
        lambda_reg: how strongly a missing patch is pulled to its IDW fill; 0 or more.
        power: of the IDW weights.
        solver: a dense factorisation, or conjugate gradients on the stencil, which forms no matrix; when not given,
            the first up to 256 patches. They agree to 1e-5.

    Raises:
        ShapeError: the shapes do not fit together, or an image has no given patch.
        ConfigError: a sigma that is not above 0, a lambda_reg or power out of range.

    Source: Zhu, Ghahramani and Lafferty, "Semi-supervised learning using Gaussian fields and harmonic functions"
    (ICML 2003), on the grid of patches; the drifting document, "Interpolation baseline update".
    """
    if not (sigma_feature > 0 and sigma_space > 0 and 0 <= lambda_reg < math.inf):
        raise ConfigError(
            f"sigma_feature = {sigma_feature}, sigma_space = {sigma_space}, lambda_reg = {lambda_reg}; "
            "give sigmas above 0 and a finite lambda_reg of 0 or more"
        )
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    start = interpolate_idw(tokens.to(dtype), given, grid, power).unflatten(1, grid)
    missing = ~given.view(-1, *grid, 1)
    edges = _edge_weights(start, sigma_feature)
    tie = _relative_tie(lambda_reg, sigma_space)
    dense = given.shape[1] <= DENSE_PATCHES if solver is None else solver == "cholesky"
    correct = (_dense_correction if dense else _iterative_correction)(edges, missing, tie)
    filled = start
    for _ in range(2):  # the second pass takes away what rounding and an early stop left by the first
        residual = (neighbour_pull(edges, filled) + tie * (start - filled)) * missing
        filled = filled + correct(residual)
    return torch.where(given.unsqueeze(-1), tokens, filled.flatten(1, 2).to(tokens.dtype))


def _edge_weights(values: Float[Tensor, "B R C D"], sigma_feature: float) -> GridEdges:
    sharpness = min(0.5 * (1 / sigma_feature) * (1 / sigma_feature), 1e12)  # finite, as 0 * infinity is no number

    def weight(difference: Tensor) -> Tensor:
        distance = difference.square().mean(dim=-1, keepdim=True)
        return torch.exp(-sharpness * distance).clamp_min(WEAKEST_EDGE)

    return GridEdges(weight(values[:, :, 1:] - values[:, :, :-1]), weight(values[:, 1:] - values[:, :-1]))


def _relative_tie(lambda_reg: float, sigma_space: float) -> float:
    # all edges have the same length, so the equation is divided by the factor of the distance, which may be tiny;
    # from 1e6 on the fill is the IDW one to float32's precision
    return min(lambda_reg * math.exp(min(0.5 * (1 / sigma_space) * (1 / sigma_space), 100.0)), 1e6)


def _dense_correction(edges: GridEdges, missing: Bool[Tensor, "B R C 1"], tie: float) -> Correction:
    grid = (missing.shape[1], missing.shape[2])
    free = missing.flatten(1)
    matrix = laplacian(*edge_list(edges, grid), num_patches=free.shape[1])
    # given patches do not move: their rows and columns become those of the identity
    matrix *= free.unsqueeze(1) & free.unsqueeze(2)
    matrix.diagonal(dim1=1, dim2=2).add_(torch.where(free, tie, 1.0))
    factor = torch.linalg.cholesky(matrix)

    def correct(residual: Float[Tensor, "B R C D"]) -> Float[Tensor, "B R C D"]:
        return torch.cholesky_solve(residual.flatten(1, 2), factor).unflatten(1, grid)

    return correct


def _iterative_correction(edges: GridEdges, missing: Bool[Tensor, "B R C 1"], tie: float) -> Correction:
    diagonal = torch.where(missing, degrees(edges, (missing.shape[1], missing.shape[2])) + tie, 1.0)
    inner = GridEdges(
        edges.across * (missing[:, :, 1:] & missing[:, :, :-1]), edges.down * (missing[:, 1:] & missing[:, :-1])
    )
    return lambda residual: solve_on_grid(inner, diagonal, residual)
