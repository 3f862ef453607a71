"""Harmonic interpolation solves its equation, keeps what is given and follows the image's edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import interpolate_harmonic, interpolate_idw, interpolation_errors, nested_masks, patchify
from latentloom.keyframes.harmonic import Solver

SOLVERS: list[Solver] = ["cholesky", "conjugate_gradients"]


def fill(
    tokens: Tensor,
    mask: Tensor,
    grid: tuple[int, int],
    solver: Solver | None = None,
    *,
    sigma_feature: float = 1.0,
    sigma_space: float = 1.0,
    lambda_reg: float = 1e-4,
) -> Tensor:
    """The fill with the settings that a training starts from."""
    return interpolate_harmonic(
        tokens,
        mask,
        grid,
        sigma_feature=sigma_feature,
        sigma_space=sigma_space,
        lambda_reg=lambda_reg,
        solver=solver,
    )


def example(seed: int, batch: int, grid: tuple[int, int], keys: int, channels: int = 3):
    generator = torch.Generator().manual_seed(seed)
    num_patches = grid[0] * grid[1]
    tokens = torch.rand(batch, num_patches, channels, generator=generator, dtype=torch.float64) * 2 - 1
    return tokens, nested_masks((keys,), num_patches, batch, generator)[0]


def by_loops(tokens, mask, grid, *, sigma_feature, sigma_space, lambda_reg) -> np.ndarray:
    """The equation of the definition, written out edge by edge for one image after the other."""
    start = interpolate_idw(tokens, mask, grid).numpy()
    filled = start.copy()
    for image in range(len(start)):
        matrix = lambda_reg * np.eye(grid[0] * grid[1])
        for patch in range(grid[0] * grid[1]):
            right = [patch + 1] if (patch + 1) % grid[1] else []
            below = [patch + grid[1]] if patch + grid[1] < len(matrix) else []
            for other in right + below:
                change = ((start[image, patch] - start[image, other]) ** 2).mean()
                weight = max(math.exp(-change / (2 * sigma_feature**2)), 1e-3) * math.exp(-1 / (2 * sigma_space**2))
                matrix[patch, patch] += weight
                matrix[other, other] += weight
                matrix[patch, other] -= weight
                matrix[other, patch] -= weight
        known = mask[image].numpy()
        side = lambda_reg * start[image, ~known] - matrix[~known][:, known] @ start[image, known]
        filled[image, ~known] = np.linalg.solve(matrix[~known][:, ~known], side)
    return filled


@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    sigma_feature=st.floats(0.1, 5),
    sigma_space=st.floats(0.3, 5),
    lambda_reg=st.sampled_from([0.0, 1e-4, 0.1, 3.0]),
    solver=st.sampled_from(SOLVERS),
    data=st.data(),
)
def test_the_fill_solves_the_equation_of_the_definition(
    seed, rows, columns, sigma_feature, sigma_space, lambda_reg, solver, data
):
    tokens, mask = example(seed, 2, (rows, columns), data.draw(st.integers(1, rows * columns)))
    settings = {"sigma_feature": sigma_feature, "sigma_space": sigma_space, "lambda_reg": lambda_reg}
    expected = by_loops(tokens, mask, (rows, columns), **settings)
    double = fill(tokens, mask, (rows, columns), solver, **settings)
    np.testing.assert_allclose(double.numpy(), expected, atol=1e-9)
    single = fill(tokens.float(), mask, (rows, columns), solver, **settings)
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-5)


@given(
    seed=st.integers(0, 999), sigma_feature=st.floats(0.02, 5), solver=st.sampled_from(SOLVERS), keys=st.integers(1, 12)
)
def test_without_a_pull_no_value_leaves_the_range_of_the_given_ones(seed, sigma_feature, solver, keys):
    tokens, mask = example(seed, 3, (5, 6), keys)
    filled = fill(tokens.float(), mask, (5, 6), solver, sigma_feature=sigma_feature, lambda_reg=0.0)
    outside = ~mask.unsqueeze(-1)
    lowest = tokens.masked_fill(outside, math.inf).amin(dim=1, keepdim=True)
    highest = tokens.masked_fill(outside, -math.inf).amax(dim=1, keepdim=True)
    assert (filled >= lowest - 1e-5).all()
    assert (filled <= highest + 1e-5).all()


@given(seed=st.integers(0, 999), value=st.floats(-3, 3), lambda_reg=st.sampled_from([0.0, 1e-4, 1.0]))
def test_a_constant_image_is_reproduced(seed, value, lambda_reg):
    _, mask = example(seed, 2, (5, 4), 3)
    tokens = torch.full((2, 20, 3), value)
    for solver in SOLVERS:
        filled = fill(tokens, mask, (5, 4), solver, lambda_reg=lambda_reg)
        assert torch.allclose(filled, tokens, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (20, 20)])  # the last is beyond the dense solver
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_given_patches_come_back_bit_for_bit_in_their_dtype(grid, dtype):
    tokens, mask = example(1, 3, grid, 5)
    tokens = tokens.to(dtype)
    filled = fill(tokens, mask, grid)
    assert filled.dtype == dtype
    assert torch.equal(filled[mask], tokens[mask])
    if dtype in (torch.float16, torch.bfloat16):
        assert torch.equal(filled, fill(tokens.float(), mask, grid).to(dtype))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("hole", [math.nan, math.inf, 7.0])
def test_values_of_missing_patches_are_never_read(solver, hole):
    tokens, mask = example(0, 3, (6, 6), 6)
    holed = tokens.masked_fill(~mask.unsqueeze(-1), hole)
    filled = fill(holed, mask, (6, 6), solver)
    assert torch.equal(filled, fill(tokens, mask, (6, 6), solver))
    assert filled.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_of_a_batch_with_masks_of_their_own_are_filled_as_alone_and_in_any_order(solver):
    tokens, mask = example(0, 6, (8, 8), 10)
    tokens = tokens.float()
    mask[1] = True  # nothing to fill
    mask[2] = torch.arange(64) == 9  # a single given patch
    together = fill(tokens, mask, (8, 8), solver)
    alone = [fill(tokens[[i]], mask[[i]], (8, 8), solver) for i in range(6)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6, rtol=0)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    shuffled = fill(tokens[order], mask[order], (8, 8), solver)
    assert torch.allclose(shuffled, together[order], atol=1e-6, rtol=0)
    assert torch.equal(together[1], tokens[1])
    assert torch.allclose(together[2], tokens[2, 9].expand(64, 3), atol=1e-6)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_keys", [16, 32, 64, 128])
def test_on_a_ramp_it_beats_inverse_distance(seed, num_keys):
    ramp = torch.linspace(0, 1, 64).expand(2, 1, 64, 64)
    tokens = patchify(torch.stack([ramp[0], (ramp[1] + ramp[1].mT) / 2]), 4)
    mask = nested_masks((num_keys,), 256, 2, torch.Generator().manual_seed(seed))[0]
    filled = fill(tokens, mask, (16, 16))
    for image in range(2):
        ours = interpolation_errors(filled[[image]], tokens[[image]], mask[[image]])
        idw = interpolation_errors(interpolate_idw(tokens, mask, (16, 16))[[image]], tokens[[image]], mask[[image]])
        assert ours["interp/mse_missing"] < idw["interp/mse_missing"]
        assert ours["interp/mse_all"] < idw["interp/mse_all"]


def test_edge_weights_bring_a_step_in_the_image_closer():
    step = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1).view(1, 64, 1).expand(50, 64, 1)
    mask = nested_masks((32,), 64, 50, torch.Generator().manual_seed(0))[0]
    errors = [
        interpolation_errors(fill(step, mask, (8, 8), sigma_feature=sigma), step, mask)["interp/mse_missing"]
        for sigma in (math.inf, 1.0, 0.5, 0.2)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.7 * errors[0]


def test_the_pull_goes_from_the_harmonic_fill_to_the_idw_one_and_weak_edges_strengthen_it():
    tokens, mask = example(5, 2, (6, 6), 6)
    idw = interpolate_idw(tokens, mask, (6, 6))

    def distance(lambda_reg: float, sigma_space: float = 1.0) -> float:
        filled = fill(tokens, mask, (6, 6), lambda_reg=lambda_reg, sigma_space=sigma_space)
        return float((filled - idw).abs().max())

    by_pull = [distance(lambda_reg=pull) for pull in (0.0, 0.1, 1.0, 10.0, 1e9)]
    assert by_pull == sorted(by_pull, reverse=True)
    assert by_pull[0] > 0.1
    assert by_pull[-1] < 1e-5
    by_space = [distance(lambda_reg=0.1, sigma_space=sigma) for sigma in (math.inf, 1.0, 0.5, 0.01)]
    assert by_space == sorted(by_space, reverse=True)
    assert by_space[-1] < 1e-5
    assert distance(lambda_reg=0.0, sigma_space=0.01) == by_pull[0]  # with nothing to weigh against


@pytest.mark.parametrize("settings", [{"sigma_feature": 1e-200}, {"sigma_space": 1e-200}, {"sigma_feature": 1e200}])
def test_extreme_sigmas_give_finite_fills(settings):
    tokens, mask = example(6, 2, (6, 6), 6)
    for solver in SOLVERS:
        filled = fill(tokens.float(), mask, (6, 6), solver, **settings)
        assert filled.isfinite().all()
        assert filled.abs().max() <= 1.00001


@pytest.mark.parametrize(
    "settings", [{"sigma_feature": 0.0}, {"sigma_space": -1.0}, {"lambda_reg": -0.1}, {"lambda_reg": math.nan}]
)
def test_settings_out_of_range_are_refused(settings):
    tokens, mask = example(0, 1, (4, 4), 4)
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} = {next(iter(settings.values()))}"):
        fill(tokens, mask, (4, 4), **settings)


def test_a_wrong_grid_is_refused():
    tokens, mask = example(0, 1, (4, 4), 4)
    with pytest.raises(ShapeError, match="a grid of 2x4 do not fit"):
        fill(tokens, mask, (2, 4))
