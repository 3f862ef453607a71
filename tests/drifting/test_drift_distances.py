"""Distances between sets of features: closed forms, naive sums, and intervals as wide as chance makes them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.drifting.distances import (
    _paired_kernel,
    frechet_distance,
    frechet_estimate,
    kernel_distance,
    kernel_estimate,
    resample,
)
from latentloom.errors import ShapeError


def normal(num: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whitened(num: int, size: int, seed: int) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose covariance is exactly the identity."""
    samples = normal(num, size, seed)
    samples = samples - samples.mean(dim=0)
    values, vectors = torch.linalg.eigh(samples.T @ samples / (num - 1))
    return samples @ vectors / values.sqrt()


def test_fd_of_gaussians_with_common_axes_is_the_closed_form():
    a = whitened(40, 3, 0) * torch.tensor([1.0, 2.0, 3.0])
    b = whitened(50, 3, 1) * torch.tensor([2.0, 2.0, 0.5]) + torch.tensor([1.0, 0.0, -2.0])
    # |mean difference|^2 + sum of (deviation differences)^2
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 6.25, rel=1e-10)


def test_fd_of_two_rotated_gaussians_is_the_closed_form_for_two_dimensions():
    a, b = whitened(30, 2, 0), whitened(30, 2, 1)
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    one, other = torch.diag(torch.tensor([4.0, 1.0]).double()), turn @ torch.diag(torch.tensor([9.0, 0.25]).double())
    first, second = one @ one.T, other @ other.T
    # in two dimensions, tr (A B)^1/2 = (tr A B + 2 det(A B)^1/2)^1/2
    product = first @ second
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = first.trace() + second.trace() - 2 * root
    assert frechet_distance(a @ one.T, b @ other.T) == pytest.approx(float(expected), rel=1e-10)


def test_fd_of_singular_covariances_is_finite_and_right():
    flat = torch.zeros(20, 6, dtype=torch.float64)
    a, b = flat.clone(), flat.clone()
    a[:, 0], b[:, 0] = whitened(20, 1, 0)[:, 0] * 2, whitened(20, 1, 1)[:, 0] * 5
    assert frechet_distance(a, b) == pytest.approx(9, rel=1e-9)
    assert frechet_distance(flat, flat) == 0
    few = normal(3, 64, 2)
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, few + 1) == pytest.approx(64, rel=1e-9)


@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 5), st.integers(0, 1000))
def test_fd_is_symmetric_and_ignores_a_common_rotation_and_shift(num_a, num_b, size, seed):
    a, b = normal(num_a, size, seed), normal(num_b, size, seed + 1) * 2
    rotation = torch.linalg.qr(normal(size, size, seed + 2)).Q
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8, abs=1e-8)
    assert frechet_distance(a @ rotation + 3, b @ rotation + 3) == pytest.approx(
        frechet_distance(a, b), rel=1e-7, abs=1e-7
    )


def test_kid_is_what_a_double_loop_gives():
    a, b = normal(7, 4, 0), normal(5, 4, 1) + 0.3

    def kernel(x, y):
        return float((x @ y / 4 + 1) ** 3)

    within_a = sum(kernel(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    within_b = sum(kernel(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
    across = sum(kernel(x, y) for x in a for y in b) / (7 * 5)
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across, rel=1e-12)


def test_kid_of_pairs_is_a_double_loop_over_different_images():
    a, b = normal(6, 4, 0), normal(6, 4, 1) + 0.3

    def kernel(x, y):
        return float((x @ y / 4 + 1) ** 3)

    terms = [
        kernel(a[i], a[j]) + kernel(b[i], b[j]) - kernel(a[i], b[j]) - kernel(a[j], b[i])
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    assert kernel_distance(a, b, paired=True) == pytest.approx(sum(terms) / 30, rel=1e-12)
    drawn = torch.tensor([0, 0, 2, 3, 3, 5])  # a resample of pairs, in which an image never meets its own copy
    times = torch.bincount(drawn, minlength=6).double()
    between = [(i, j) for i in drawn.tolist() for j in drawn.tolist() if i != j]
    resampled = sum(kernel(a[i], a[j]) + kernel(b[i], b[j]) - 2 * kernel(a[i], b[j]) for i, j in between) / len(between)
    assert float(_paired_kernel(a, b, times[None], times[None])) == pytest.approx(resampled, rel=1e-12)


def test_kid_of_pairs_is_zero_on_average_for_nearly_equal_pairs_and_varies_less():
    """Compared as if they were independent, pairs pull KID below 0: every image meets its own copy."""
    images = [normal(20, 3, seed) for seed in range(300)]
    pairs = [(image, image + 0.1 * normal(20, 3, 1000 + seed)) for seed, image in enumerate(images)]
    noise = torch.tensor([kernel_distance(a, b, paired=True) for a, b in pairs])
    naive = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    assert float(noise.std()) < 0.2 * float(naive.std())
    assert float(naive.mean()) < -5 * float(naive.std()) / 300**0.5


def test_kid_of_one_distribution_is_zero_on_average_and_fd_is_not():
    pairs = [(normal(20, 3, 2 * seed), normal(20, 3, 2 * seed + 1)) for seed in range(300)]
    kids = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    assert abs(kids.mean()) < 3 * kids.std() / 300**0.5
    assert (kids < 0).any()
    assert min(frechet_distance(a, b) for a, b in pairs) > 0


def test_sums_in_blocks_are_the_whole_sum(monkeypatch):
    a, b = normal(50, 4, 0), normal(40, 4, 1)
    whole = kernel_distance(a, b)
    monkeypatch.setattr("latentloom.drifting.distances._ROWS_AT_ONCE", 7)
    assert kernel_distance(a, b) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize(
    ("distance", "estimate"), [(frechet_distance, frechet_estimate), (kernel_distance, kernel_estimate)]
)
def test_intervals_are_as_wide_as_the_distances_of_new_samples_spread(distance, estimate):
    spread = torch.tensor(
        [distance(normal(200, 4, 10 + 2 * s), normal(200, 4, 11 + 2 * s) + 0.5) for s in range(150)]
    ).std()
    reaches = []
    for seed in range(5):
        found = estimate(normal(200, 4, 1000 + seed), normal(200, 4, 2000 + seed) + 0.5)
        assert found.low < found.value < found.high
        reaches.append((found.high - found.low) / 2)
    assert sum(reaches) / 5 == pytest.approx(1.96 * float(spread), rel=0.25)


@given(st.integers(2, 4), st.booleans(), st.integers(0, 100))
@settings(max_examples=20)
def test_the_intervals_of_very_few_images_hold_the_distance(num, paired, seed):
    a, b = normal(num, 3, seed), normal(num, 3, seed + 1) + 0.5
    for estimate in (frechet_estimate, kernel_estimate):
        found = estimate(a, b, paired=paired, seed=seed)
        assert found.low <= found.value <= found.high < float("inf")  # none of which is true of NaN
        assert (found.high - found.low > 1e-6) == (num > 2)  # two images leave only resamples that are both of them


@pytest.mark.parametrize("estimate", [frechet_estimate, kernel_estimate])
def test_without_a_resample_of_two_images_the_interval_is_the_distance(estimate, monkeypatch):
    monkeypatch.setattr("latentloom.drifting.distances.resample", lambda num, *_: 2.0 * torch.eye(num).double())
    found = estimate(normal(2, 3, 0), normal(2, 3, 1))
    assert found.low == found.value == found.high


def test_pairs_are_drawn_together():
    a = normal(60, 3, 0)
    assert frechet_estimate(a, a + 2, paired=True).high == pytest.approx(12, rel=1e-6)
    assert frechet_estimate(a, a + 2).high > 14
    with pytest.raises(ShapeError, match="60 and 59 samples are not pairs"):
        kernel_estimate(a, a[1:], paired=True)


def test_an_estimate_is_reproducible_and_its_seed_matters():
    a, b = normal(30, 3, 0), normal(30, 3, 1)
    assert kernel_estimate(a, b, seed=3) == kernel_estimate(a, b, seed=3)
    assert kernel_estimate(a, b, seed=3) != kernel_estimate(a, b, seed=4)


def test_resamples_have_as_many_rows_as_the_set():
    counts = resample(9, 50, seed=0)
    assert counts.shape == (50, 9)
    assert (counts.sum(dim=1) == 9).all()
    assert counts.max() > 1


def test_a_single_sample_has_no_distance():
    with pytest.raises(ShapeError, match="two or more"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ShapeError, match="two or more"):
        kernel_distance(torch.zeros(4, 3), torch.zeros(1, 3))
