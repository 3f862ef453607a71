"""Both solvers of the harmonic fill agree, and no edge of the graph is lost."""

import logging
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.keyframes import harmonic, interpolate_harmonic, nested_masks
from latentloom.keyframes.grid_graph import GridEdges, degrees, edge_list, laplacian, neighbour_pull


def random_edges(seed: int, rows: int, columns: int) -> GridEdges:
    generator = torch.Generator().manual_seed(seed)
    across = torch.rand(2, rows, columns - 1, 1, generator=generator, dtype=torch.float64)
    return GridEdges(across, torch.rand(2, rows - 1, columns, 1, generator=generator, dtype=torch.float64))


def test_an_edge_that_is_listed_twice_counts_twice():
    ends = torch.tensor([[0, 0, 1], [1, 1, 2]])
    matrix = laplacian(ends, torch.tensor([[1.0, 2.0, 4.0]]), 3)
    assert matrix.tolist() == [[[3, -3, 0], [-3, 7, -4], [0, -4, 4]]]


def test_the_diagonal_sums_all_four_edges_of_a_patch():
    edges = GridEdges(torch.ones(1, 3, 2, 1), torch.ones(1, 2, 3, 1))
    matrix = laplacian(*edge_list(edges, (3, 3)), 9)[0]
    assert matrix.diagonal().tolist() == [2, 3, 2, 3, 4, 3, 2, 3, 2]
    assert matrix[4].tolist() == [0, -1, 0, -1, 4, -1, 0, -1, 0]


@given(seed=st.integers(0, 999), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_matrix_and_stencil_are_one_laplacian(seed, rows, columns):
    edges = random_edges(seed, rows, columns)
    matrix = laplacian(*edge_list(edges, (rows, columns)), rows * columns)
    values = torch.randn(2, rows, columns, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(neighbour_pull(edges, values).flatten(1, 2), -matrix @ values.flatten(1, 2))
    torch.testing.assert_close(degrees(edges, (rows, columns)).flatten(1), matrix.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(matrix, matrix.mT)
    torch.testing.assert_close(matrix.sum(dim=2), torch.zeros(2, rows * columns, dtype=torch.float64))


@pytest.mark.parametrize("grid", [(16, 16), (3, 85), (24, 24)])
@pytest.mark.parametrize("sigma_feature", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("lambda_reg", [0.0, 1e-4])
@pytest.mark.parametrize("share", [0, 1 / 16, 1 / 4])
def test_both_solvers_agree_in_float32_and_with_float64(grid, sigma_feature, lambda_reg, share, caplog):
    num_patches = grid[0] * grid[1]
    generator = torch.Generator().manual_seed(num_patches)
    tokens = torch.rand(2, num_patches, 4, generator=generator) * 2 - 1
    mask = nested_masks((max(2, int(share * num_patches)),), num_patches, 2, generator)[0]
    fill = partial(
        interpolate_harmonic, given=mask, grid=grid, sigma_feature=sigma_feature, sigma_space=1.0, lambda_reg=lambda_reg
    )
    exact = fill(tokens.double(), solver="cholesky").float()
    with caplog.at_level(logging.WARNING):
        iterative = fill(tokens, solver="conjugate_gradients")
    dense = fill(tokens, solver="cholesky")
    assert float((iterative - dense).abs().max()) < 1e-5
    assert float((iterative - exact).abs().max()) < 1e-5
    assert float((dense - exact).abs().max()) < 1e-5
    assert caplog.records == []


@pytest.mark.parametrize(("grid", "dense"), [((16, 16), True), ((1, 257), False)])
def test_no_matrix_is_formed_above_256_patches(grid, dense, monkeypatch):
    formed = []
    monkeypatch.setattr(harmonic, "laplacian", lambda *args, **named: formed.append(1) or laplacian(*args, **named))
    num_patches = math.prod(grid)
    mask = nested_masks((8,), num_patches, 1, torch.Generator().manual_seed(0))[0]
    interpolate_harmonic(torch.rand(1, num_patches, 2), mask, grid, sigma_feature=1.0, sigma_space=1.0, lambda_reg=1e-4)
    assert bool(formed) == dense
