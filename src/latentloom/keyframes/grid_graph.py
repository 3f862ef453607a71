"""The graph of a patch grid: every patch is joined to its four neighbours by weighted edges."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class GridEdges(NamedTuple):
    """Weights of the edges of B grids of R rows and C columns; the last dimension meets the channels.

    Args:
        across: between a patch and its right neighbour [B, R, C-1, 1].
        down: between a patch and the one below it [B, R-1, C, 1].
    """

    across: Float[Tensor, "B R _ 1"]
    down: Float[Tensor, "B _ C 1"]


def neighbour_pull(edges: GridEdges, values: Float[Tensor, "B R C D"]) -> Float[Tensor, "B R C D"]:
    """For every patch the weighted sum of its neighbours' differences to it, which is minus the Laplacian times values.

    Taken from differences, so that it is exact to the last digits where neighbours are almost equal.
    """
    to_right = (values[:, :, 1:] - values[:, :, :-1]) * edges.across
    to_below = (values[:, 1:] - values[:, :-1]) * edges.down
    pull = torch.zeros_like(values)
    pull[:, :, :-1] += to_right
    pull[:, :, 1:] -= to_right
    pull[:, :-1] += to_below
    pull[:, 1:] -= to_below
    return pull


def degrees(edges: GridEdges, grid: tuple[int, int]) -> Float[Tensor, "B R C 1"]:
    """For every patch the sum of its edges' weights: the Laplacian's diagonal."""
    degree = edges.across.new_zeros(edges.across.shape[0], *grid, 1)
    degree[:, :, :-1] += edges.across
    degree[:, :, 1:] += edges.across
    degree[:, :-1] += edges.down
    degree[:, 1:] += edges.down
    return degree


def edge_list(edges: GridEdges, grid: tuple[int, int]) -> tuple[Int[Tensor, "2 E"], Float[Tensor, "B E"]]:
    """The ends of all edges as patch numbers, and their weights."""
    number = torch.arange(grid[0] * grid[1], device=edges.across.device).view(grid)
    first = torch.cat([number[:, :-1].flatten(), number[:-1].flatten()])
    second = torch.cat([number[:, 1:].flatten(), number[1:].flatten()])
    return torch.stack([first, second]), torch.cat([edges.across.flatten(1), edges.down.flatten(1)], dim=1)


def laplacian(
    ends: Int[Tensor, "2 E"], weights: Float[Tensor, "B E"], num_patches: int
) -> Float[Tensor, "B {num_patches} {num_patches}"]:
    """The graph Laplacian as a dense matrix: minus the weights beside a diagonal on which all rows sum to 0.

    Args:
        ends: patch numbers that each edge joins; an edge may be listed twice, and its weights then add up.
        weights: of the edges, for each of B graphs.
        num_patches: size of the matrix, N.
    """
    first, second = ends
    places = torch.cat([first * (num_patches + 1), second * (num_patches + 1)])
    places = torch.cat([places, first * num_patches + second, second * num_patches + first])
    values = torch.cat([weights, weights, -weights, -weights], dim=1)
    matrix = weights.new_zeros(weights.shape[0], num_patches * num_patches)
    # a patch is the end of up to four edges: an assignment would keep one of them on the diagonal, this sums them
    matrix.scatter_add_(1, places.expand_as(values), values)
    return matrix.view(-1, num_patches, num_patches)
