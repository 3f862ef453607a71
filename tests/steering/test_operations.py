"""The arithmetic of edits, by its invariants."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentloom.steering.operations import ablate, add, add_keep_norm, mix, plane_basis, rotate

SEEDS = st.integers(0, 10_000)


def draw(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 5, 16, generator=generator)
    return tokens, torch.randn(16, generator=generator), torch.randn(16, generator=generator)


def amount(value: float) -> Tensor:
    return torch.tensor(value)


@given(SEEDS)
def test_a_mix_ends_exactly_on_its_ends(seed):
    tokens, _, _ = draw(seed)
    other = tokens.flip(0)
    assert torch.equal(mix(tokens, other, amount(0.0)), tokens)
    assert torch.equal(mix(tokens, other, amount(1.0)), other)
    torch.testing.assert_close(mix(tokens, other, amount(0.25)), 0.75 * tokens + 0.25 * other)


@given(SEEDS, st.floats(-3, 3))
def test_adding_shifts_every_token_alike(seed, factor):
    tokens, direction, _ = draw(seed)
    torch.testing.assert_close(
        add(tokens, direction, amount(factor)) - tokens, factor * direction.expand(2, 5, -1), atol=1e-5, rtol=1e-5
    )


@given(SEEDS, st.floats(-50, 50))
def test_adding_with_the_norm_kept_turns_towards_the_direction(seed, factor):
    tokens, direction, _ = draw(seed)
    turned = add_keep_norm(tokens, direction, amount(factor))
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))
    gain = (turned - tokens) @ direction * math.copysign(1, factor)
    assert (gain >= -1e-3).all()


def test_a_token_that_is_cancelled_stays():
    direction = torch.ones(4)
    tokens = -direction.expand(1, 2, -1).clone()
    assert torch.equal(add_keep_norm(tokens, direction, amount(1.0)), tokens)


@given(SEEDS)
def test_ablating_leaves_nothing_along_the_direction_and_twice_is_once(seed):
    tokens, direction, _ = draw(seed)
    once = ablate(tokens, direction, amount(1.0))
    assert ((once @ direction).abs() < 1e-4).all()
    torch.testing.assert_close(ablate(once, direction, amount(1.0)), once, atol=1e-6, rtol=1e-5)
    mirrored = ablate(tokens, direction, amount(2.0))
    torch.testing.assert_close(mirrored @ direction, -(tokens @ direction), atol=1e-4, rtol=1e-4)


def test_ablating_a_zero_direction_changes_nothing():
    tokens, _, _ = draw(0)
    assert torch.equal(ablate(tokens, torch.zeros(16), amount(1.0)), tokens)


@given(SEEDS, st.floats(-4, 4))
def test_a_rotation_keeps_lengths_and_what_is_outside_the_plane(seed, turns):
    tokens, first, second = draw(seed)
    turned = rotate(tokens, first, second, amount(turns))
    torch.testing.assert_close(turned.norm(dim=-1), tokens.norm(dim=-1))
    along, across = plane_basis(first, second)
    outside = [x - (x @ along).unsqueeze(-1) * along - (x @ across).unsqueeze(-1) * across for x in (tokens, turned)]
    torch.testing.assert_close(outside[0], outside[1], atol=1e-5, rtol=1e-5)


@given(SEEDS)
def test_strength_one_turns_the_first_direction_into_the_second_and_back(seed):
    _, first, second = draw(seed)
    row = first.expand(1, 1, -1)
    turned = rotate(row, first, second, amount(1.0))[0, 0]
    torch.testing.assert_close(turned / turned.norm(), second / second.norm(), atol=1e-5, rtol=1e-4)
    back = rotate(turned.expand(1, 1, -1), first, second, amount(-1.0))[0, 0]
    torch.testing.assert_close(back, first, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_operation_gives_back_the_dtype_it_was_given(dtype):
    tokens, first, second = draw(1)
    tokens = tokens.to(dtype)
    one = amount(1.0)
    for edited in (
        mix(tokens, tokens.flip(0), one),
        add(tokens, first, one),
        add_keep_norm(tokens, first, one),
        ablate(tokens, first, one),
        rotate(tokens, first, second, one),
    ):
        assert edited.dtype == dtype
