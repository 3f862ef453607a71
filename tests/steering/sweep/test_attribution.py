"""Shapley values of blocks: against known games, and their defining properties."""

from collections.abc import Collection, Iterable
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentloom.steering.sweep.attribution import Contributions, mean_contributions, shapley_values


def game_of(table: torch.Tensor):
    """A game per column of a table [2^N, B]; the bits of a row's number are the units."""
    return lambda places: table[sum(1 << place for place in places)]


def test_an_additive_game_gives_each_unit_its_own():
    worth = torch.tensor([1.0, 2.0, 4.0])

    def value(places: Iterable[int]) -> Tensor:
        return worth[list(places)].sum().reshape(1)

    assert shapley_values(value, 3).tolist() == [[1.0, 2.0, 4.0]]


def test_two_that_only_work_together_share_and_a_bystander_gets_nothing():
    def value(places: Iterable[int]) -> Tensor:
        return torch.tensor([float({0, 2} <= set(places))])

    assert shapley_values(value, 3).tolist() == [[0.5, 0.0, 0.5]]


def test_the_glove_game():
    """One left glove (unit 0) and two right ones: 2/3, 1/6, 1/6."""

    def value(places: Collection[int]) -> Tensor:
        return torch.tensor([float(0 in places and (1 in places or 2 in places))])

    torch.testing.assert_close(shapley_values(value, 3), torch.tensor([[2 / 3, 1 / 6, 1 / 6]]))


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_exact_values_are_the_mean_over_all_orders_and_add_up(seed, num_units):
    table = torch.randn(2**num_units, 3, generator=torch.Generator().manual_seed(seed))
    exact = shapley_values(game_of(table), num_units)
    over_orders = mean_contributions(game_of(table), list(permutations(range(num_units))))
    torch.testing.assert_close(exact, over_orders, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(exact.sum(dim=1), table[-1] - table[0], atol=1e-5, rtol=1e-5)


def test_one_order_gives_what_each_unit_adds_in_it():
    table = torch.tensor([0.0, 1.0, 5.0, 7.0]).unsqueeze(1)  # none, {0}, {1}, both
    assert mean_contributions(game_of(table), [(0, 1)]).tolist() == [[1.0, 6.0]]
    assert mean_contributions(game_of(table), [(1, 0)]).tolist() == [[2.0, 5.0]]


def test_intervals_hold_the_mean_and_shrink_with_more_pairs():
    generator = torch.Generator().manual_seed(0)
    few, many = (Contributions.of((torch.rand(count, 2, generator=generator) < 0.5).float()) for count in (20, 2000))
    for found in (few, many):
        assert (found.low <= found.mean).all()
        assert (found.mean <= found.high).all()
    assert ((many.high - many.low) < 0.3 * (few.high - few.low)).all()
    # the interval of a share of one half over 2,000 pairs
    assert (many.high - many.low).tolist() == pytest.approx([0.0438, 0.0438], abs=0.004)


def test_pairs_that_agree_leave_no_interval():
    found = Contributions.of(torch.full((7, 3), 0.1))
    assert torch.equal(found.low, found.mean)
    assert torch.equal(found.high, found.mean)
    assert found.to_json()["mean"] == pytest.approx([0.1] * 3)


def test_an_interval_can_be_repeated():
    values = torch.rand(9, 2)
    assert Contributions.of(values, seed=3).to_json() == Contributions.of(values, seed=3).to_json()
