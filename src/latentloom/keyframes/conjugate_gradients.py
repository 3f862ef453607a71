"""Linear systems on patch grids, solved for a batch at once without forming a matrix."""

import logging

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.keyframes.grid_graph import GridEdges

log = logging.getLogger(__name__)

CHECK_EVERY = 8  # iterations between two looks at the residual; each look waits for an accelerator


def solve_on_grid(
    edges: GridEdges, diagonal: Float[Tensor, "B R C 1"], residual: Float[Tensor, "B R C D"]
) -> Float[Tensor, "B R C D"]:
    """The x with diagonal * x - (weights times neighbours) = residual, by Jacobi-preconditioned conjugate gradients.

    Every channel of every grid has step lengths of its own; the rest of the batch only decides how long it goes on.

    Args:
        edges: weights, 0 for an edge that does not couple its ends.
        diagonal: above 0, at least the sum of each patch's weights.
        residual: right-hand sides, D per grid. Each is solved to the square root of its dtype's precision, which two
            passes, the second on what the first left, bring to the full one.

    Source: Shewchuk, "An introduction to the conjugate gradient method without the agonizing pain" (1994), B3.
    """
    scale = diagonal.rsqrt()
    # the Jacobi preconditioner as a scaling from both sides: the diagonal becomes 1 and falls out of the loop
    edges = GridEdges(edges.across * scale[:, :, 1:] * scale[:, :, :-1], edges.down * scale[:, 1:] * scale[:, :-1])
    remainder = residual * scale
    solution = torch.zeros_like(remainder)
    direction = remainder.clone()
    size = _square(remainder)
    enough = size * torch.finfo(size.dtype).eps  # sizes are squares
    most = 20 * (residual.shape[1] + residual.shape[2]) + CHECK_EVERY
    for iteration in range(most):
        if iteration % CHECK_EVERY == 0 and bool((size <= enough).all()):
            break
        image = _apply(edges, direction)
        step = _ratio(size, _dot(direction, image))
        solution.addcmul_(step, direction)
        remainder.addcmul_(step, image, value=-1)
        before, size = size, _square(remainder)
        direction.mul_(_ratio(size, before)).add_(remainder)
    else:
        log.warning("conjugate gradients on %dx%d patches stopped after %d iterations", *residual.shape[1:3], most)
    return solution * scale


def _apply(edges: GridEdges, values: Float[Tensor, "B R C D"]) -> Float[Tensor, "B R C D"]:
    image = values.clone()
    image[:, :, :-1].addcmul_(edges.across, values[:, :, 1:], value=-1)
    image[:, :, 1:].addcmul_(edges.across, values[:, :, :-1], value=-1)
    image[:, :-1].addcmul_(edges.down, values[:, 1:], value=-1)
    image[:, 1:].addcmul_(edges.down, values[:, :-1], value=-1)
    return image


def _dot(left: Float[Tensor, "B R C D"], right: Float[Tensor, "B R C D"]) -> Float[Tensor, "B 1 1 D"]:
    return (left * right).sum(dim=(1, 2), keepdim=True)


def _square(values: Float[Tensor, "B R C D"]) -> Float[Tensor, "B 1 1 D"]:
    return _dot(values, values)


def _ratio(over: Float[Tensor, "B 1 1 D"], under: Float[Tensor, "B 1 1 D"]) -> Float[Tensor, "B 1 1 D"]:
    # a solved right-hand side has both at 0 and stays where it is
    return torch.where(under > 0, over / under, 0.0)
