"""Bootstrap intervals: reproducible, paired, around the mean and as wide as they should be."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta import bootstrap
from latentloom.delta.bootstrap import Estimate, estimate, estimates, resampled_means

values = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=30)


@given(values, st.integers(0, 2**31))
def test_an_interval_contains_the_mean_and_stays_within_the_values(numbers, seed):
    found = estimate(torch.tensor(numbers, dtype=torch.float64), seed, num_resamples=200)
    assert found.mean == pytest.approx(sum(numbers) / len(numbers), abs=1e-6)
    assert found.low <= found.mean <= found.high
    assert min(numbers) - 1e-6 <= found.low
    assert found.high <= max(numbers) + 1e-6


@given(st.floats(-1e6, 1e6), st.integers(1, 20))
def test_equal_values_have_an_interval_of_no_width(value, count):
    found = estimate(torch.full((count,), value, dtype=torch.float64))
    assert found.high - found.low <= 1e-15 * abs(value) * count


def test_one_seed_gives_one_interval_and_another_another():
    numbers = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert estimate(numbers, 3) == estimate(numbers, 3)
    assert estimate(numbers, 3) != estimate(numbers, 4)


def test_an_interval_is_as_wide_as_theory_says():
    numbers = torch.arange(1000, dtype=torch.float64) % 2  # standard error of the mean: 0.5 / sqrt(1000)
    found = estimate(numbers, num_resamples=4000)
    assert found.mean == 0.5
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * 0.5 / 1000**0.5, rel=0.05)
    narrow = estimate(numbers, num_resamples=4000, confidence=0.5)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(0.6745 * 0.5 / 1000**0.5, rel=0.08)


def test_figures_of_the_same_pairs_are_resampled_together():
    one = torch.randn(40, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    means = resampled_means(torch.cat([one, one + 0.1], dim=1), seed=5)
    assert means.shape == (1000, 2)
    torch.testing.assert_close(means[:, 1] - means[:, 0], torch.full((1000,), 0.1, dtype=torch.float64))
    together = estimates({"a": one[:, 0], "b": 2 * one[:, 0]}, seed=5)
    alone = estimate(one[:, 0], seed=5)
    assert [together["a"].low, together["a"].high] == pytest.approx([alone.low, alone.high])
    assert [together["b"].low, together["b"].high] == pytest.approx([2 * alone.low, 2 * alone.high])


def test_resamples_in_several_pieces_are_resamples_too(monkeypatch):
    numbers = torch.arange(100, dtype=torch.float64).unsqueeze(1)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 700)
    means = resampled_means(numbers, num_resamples=1000)
    assert means.shape == (1000, 1)
    assert means.mean().item() == pytest.approx(49.5, abs=0.5)
    assert means.std().item() == pytest.approx(28.87 / 10, rel=0.1)
    assert len(means.unique()) > 500


def test_an_estimate_goes_to_json():
    assert Estimate(0.5, 0.25, 0.75).to_json() == {"mean": 0.5, "low": 0.25, "high": 0.75}
