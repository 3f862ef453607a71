"""Inverse-distance weights fill missing patches from given ones only."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import interpolate_idw, interpolation_errors, nested_masks


def by_loops(tokens: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int], power: float) -> np.ndarray:
    """The definition, one patch at a time."""
    values, known = tokens.double().numpy(), mask.numpy()
    places = np.stack(np.unravel_index(np.arange(values.shape[1]), grid), axis=1)
    filled = values.copy()
    for image, patch in zip(*np.nonzero(~known), strict=True):
        weights = np.linalg.norm(places[known[image]] - places[patch], axis=1) ** -power
        filled[image, patch] = weights @ values[image, known[image]] / weights.sum()
    return filled


def example(seed: int, batch: int, grid: tuple[int, int], keys: int, channels: int = 3):
    generator = torch.Generator().manual_seed(seed)
    num_patches = grid[0] * grid[1]
    tokens = torch.rand(batch, num_patches, channels, generator=generator) * 2 - 1
    return tokens, nested_masks((keys,), num_patches, batch, generator)[0]


@given(
    seed=st.integers(0, 999), rows=st.integers(1, 6), columns=st.integers(1, 6), power=st.floats(0, 8), data=st.data()
)
def test_the_fill_is_the_weighted_mean_of_the_definition(seed, rows, columns, power, data):
    keys = data.draw(st.integers(1, rows * columns))
    tokens, mask = example(seed, 2, (rows, columns), keys)
    filled = interpolate_idw(tokens, mask, (rows, columns), power)
    np.testing.assert_allclose(filled.numpy(), by_loops(tokens, mask, (rows, columns), power), atol=2e-6)


def test_a_patch_between_two_given_ones():
    tokens = torch.tensor([[[0.0], [9.0], [9.0], [3.0]]])
    mask = torch.tensor([[True, False, False, True]])
    assert interpolate_idw(tokens, mask, (1, 4), 2.0).flatten().tolist() == pytest.approx([0, 0.6, 2.4, 3])
    assert interpolate_idw(tokens, mask, (1, 4), 1.0).flatten().tolist() == pytest.approx([0, 1, 2, 3])
    assert interpolate_idw(tokens, mask, (1, 4), 0.0).flatten().tolist() == pytest.approx([0, 1.5, 1.5, 3])


def test_each_image_of_a_batch_is_filled_with_its_own_mask_as_it_would_be_alone():
    tokens, mask = example(0, 5, (4, 4), 4)
    together = interpolate_idw(tokens, mask, (4, 4))
    alone = torch.cat([interpolate_idw(tokens[[i]], mask[[i]], (4, 4)) for i in range(5)])
    assert torch.allclose(together, alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hole", [float("nan"), float("inf")])
def test_values_of_missing_patches_are_never_read(hole):
    tokens, mask = example(0, 2, (4, 4), 4)
    holed = tokens.masked_fill(~mask.unsqueeze(-1), hole)
    assert torch.equal(interpolate_idw(holed, mask, (4, 4)), interpolate_idw(tokens, mask, (4, 4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_given_patches_come_back_bit_for_bit_in_their_dtype(dtype):
    tokens, mask = example(1, 3, (4, 4), 5)
    tokens = tokens.to(dtype)
    filled = interpolate_idw(tokens, mask, (4, 4))
    assert filled.dtype == dtype
    assert torch.equal(filled[mask], tokens[mask])


def test_half_precision_is_filled_in_float32_also_under_autocast():
    tokens, mask = example(2, 2, (8, 8), 8)
    exact = interpolate_idw(tokens, mask, (8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(interpolate_idw(tokens, mask, (8, 8)), exact)
    half = tokens.bfloat16()
    assert torch.equal(interpolate_idw(half, mask, (8, 8)), interpolate_idw(half.float(), mask, (8, 8)).bfloat16())


def test_gradients_reach_given_patches_only():
    tokens, mask = example(3, 1, (3, 3), 3)
    tokens.requires_grad_()
    interpolate_idw(tokens, mask, (3, 3)).sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad[mask] > 1).all()
    assert not tokens.grad[~mask].any()


def test_a_large_power_takes_the_nearest_patch():
    tokens, mask = example(4, 1, (1, 8), 8)
    mask = torch.tensor([[True, False, False, False, False, False, False, True]])
    filled = interpolate_idw(tokens, mask, (1, 8), 30.0)
    assert torch.allclose(filled[0, 1:4], tokens[0, :1].expand(3, -1), atol=1e-3)
    assert torch.allclose(filled[0, 4:7], tokens[0, 7:].expand(3, -1), atol=1e-3)


@pytest.mark.parametrize("power", [-1.0, 40.0, float("nan"), float("inf")])
def test_a_power_that_rises_or_leaves_float32_is_refused(power):
    tokens, mask = example(0, 1, (8, 8), 4)
    with pytest.raises(ConfigError, match=rf"power = {power} on a grid of 8x8; give 0 to 30"):
        interpolate_idw(tokens, mask, (8, 8), power)


def test_a_wrong_grid_and_an_image_without_a_given_patch_are_refused():
    tokens, mask = example(0, 2, (4, 4), 4)
    with pytest.raises(ShapeError, match="a grid of 4x5 do not fit"):
        interpolate_idw(tokens, mask, (4, 5))
    mask[1] = False
    with pytest.raises(ShapeError, match="image 1 of the batch has no given patch"):
        interpolate_idw(tokens, mask, (4, 4))


def test_errors_are_means_over_missing_and_over_all_patches():
    clean = torch.zeros(2, 3, 2)
    filled = torch.tensor([[[0.0, 0], [1, 3], [2, 2]], [[0, 0], [0, 0], [0, 2]]])
    mask = torch.tensor([[True, False, False], [True, True, False]])
    errors = interpolation_errors(filled, clean, mask)
    assert errors == pytest.approx({"interp/mse_missing": (5 + 4 + 2) / 3, "interp/mse_all": (5 + 4 + 2) / 6})
    assert interpolation_errors(filled, clean, torch.ones_like(mask))["interp/mse_missing"] == 0


def test_errors_of_half_precision_are_taken_in_float32():
    filled = torch.full((1, 4, 4096), 1.01, dtype=torch.bfloat16)
    expected = (float(filled[0, 0, 0]) - 1) ** 2
    errors = interpolation_errors(filled, torch.ones_like(filled), torch.zeros(1, 4, dtype=torch.bool))
    assert errors == pytest.approx({"interp/mse_missing": expected, "interp/mse_all": expected}, rel=1e-5)
