"""Figures about the kernel, the features and the queues, against sums written out and against known mistakes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.diagnostics import kernel_statistics, queue_statistics, separation
from latentloom.drifting.field import compute_drift
from latentloom.drifting.queues import SampleQueue


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(gen, pos, neg, temperature, weight_neg):
    """Positive share and mean effective number of one call, pair by pair as the official code defines it."""
    num_gen = gen.shape[1]
    targets, weights = (
        torch.cat([gen, neg, pos], 1),
        torch.ones(len(gen), num_gen + neg.shape[1] + pos.shape[1]).double(),
    )
    weights[:, num_gen : num_gen + neg.shape[1]] = weight_neg
    d = ((gen[:, :, None] - targets[:, None]) ** 2).sum(-1).clamp_min(1e-8).sqrt()
    scale = (d * weights[:, None]).mean() / weights.mean()
    positive, total, numbers, logits = 0.0, 0.0, [], []
    for b in range(len(gen)):
        logit = -d[b] / scale / temperature
        for i in range(num_gen):
            logits += [float(logit[i, j]) for j in range(targets.shape[1]) if j != i]
            logit[i, i] -= 100 / temperature
        rows, columns = logit.softmax(1), logit.softmax(0)
        for i in range(num_gen):
            a = [
                math.sqrt(max(float(rows[i, j] * columns[i, j]), 1e-6)) * float(weights[b, j])
                for j in range(targets.shape[1])
            ]
            a[i] = 0.0
            positive, total = positive + sum(a[-pos.shape[1] :]), total + sum(a)
            numbers.append(math.exp(-sum(x / sum(a) * math.log(x / sum(a)) for x in a if x > 0)))
    return positive / total, sum(numbers) / len(numbers), sum(logits) / len(logits), float(scale)


def test_kernel_statistics_are_what_sums_over_pairs_give():
    gen, pos, neg = normal(2, 3, 5), normal(2, 4, 5, seed=1) + 0.5, normal(2, 2, 5, seed=2)
    weight_neg = torch.tensor([[0.5, 0.5], [0.0, 0.0]]).double()
    found = kernel_statistics(gen, pos, neg, temperatures=(0.05, 0.2), weight_neg=weight_neg)
    for temperature in (0.05, 0.2):
        share, number, logit, scale = by_loops(gen, pos, neg, temperature, weight_neg)
        assert found[f"kernel/{temperature}/positive_share"] == pytest.approx(share)
        assert found[f"kernel/{temperature}/neighbours"] == pytest.approx(number)
        assert found[f"kernel/{temperature}/logit"] == pytest.approx(logit)
        drift = compute_drift(gen, pos, neg, temperatures=(temperature,), weight_neg=weight_neg)
        assert float(drift.scale) == pytest.approx(scale)
    assert found["kernel/distance_pos"] == pytest.approx(float(torch.cdist(gen, pos).mean()) / scale)
    assert found["kernel/distance_gen"] == pytest.approx(float(torch.cdist(gen, gen).sum() / 12) / scale)


def test_targets_at_equal_distances_count_by_the_affinities_that_act():
    points = torch.eye(12).double()  # all of them sqrt(2) apart
    found = kernel_statistics(points[None, :4], points[None, 4:9], points[None, 9:], temperatures=(0.02, 1.0))
    # a generated target is shared by 3 queries, being no target of its own; the other 8 are shared by 4
    generated, real = 3 * (1 / 3) ** 0.5, 8 * (1 / 4) ** 0.5
    shares = [1 / 3**0.5 / (generated + real)] * 3 + [1 / 2 / (generated + real)] * 8
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert expected == pytest.approx(11, abs=0.03)
    for temperature in ("0.02", "1"):
        # affinities do not sum to 1, so that their entropy as they are is another number
        assert found[f"kernel/{temperature}/neighbours"] == pytest.approx(expected, rel=1e-6)
        assert found[f"kernel/{temperature}/positive_share"] == pytest.approx(sum(shares[-5:]), rel=1e-6)


def test_a_colder_kernel_sees_fewer_neighbours():
    found = kernel_statistics(normal(2, 8, 6), normal(2, 16, 6, seed=1), temperatures=(0.02, 0.1, 1.0))
    numbers = [found[f"kernel/{temperature}/neighbours"] for temperature in ("0.02", "0.1", "1")]
    assert numbers == sorted(numbers)
    assert 1 <= numbers[0] < 0.6 * numbers[2] <= 0.6 * 23


@given(st.integers(0, 100), st.floats(0.01, 2.0))
def test_numbers_of_neighbours_and_shares_stay_in_their_range(seed, temperature):
    found = kernel_statistics(normal(2, 3, 4, seed=seed), normal(2, 5, 4, seed=seed + 1), temperatures=(temperature,))
    number, share = found[f"kernel/{temperature:g}/neighbours"], found[f"kernel/{temperature:g}/positive_share"]
    assert 1 <= number <= 7 + 1e-9
    assert 0 < share < 1


def test_samples_that_do_not_exist_change_nothing():
    gen, pos, neg = normal(2, 3, 5), normal(2, 4, 5, seed=1), normal(2, 2, 5, seed=2)
    padded = [torch.cat([part, torch.full((2, 2, 5), math.nan).double()], dim=1) for part in (gen, neg, pos)]
    valid = torch.cat([torch.tensor([True] * count + [False] * 2) for count in (3, 2, 4)]).expand(2, -1)
    found = kernel_statistics(padded[0], padded[2], padded[1], temperatures=(0.1,), valid=valid)
    assert found == pytest.approx(kernel_statistics(gen, pos, neg, temperatures=(0.1,)))


def test_a_lone_sample_has_statistics():
    found = kernel_statistics(torch.zeros(1, 1, 3), torch.zeros(1, 1, 3), temperatures=(0.1,))
    assert found["kernel/0.1/neighbours"] == pytest.approx(1)
    assert "kernel/distance_gen" not in found
    assert all(math.isfinite(value) for value in found.values())


def test_separated_classes_are_told_from_mixed_ones():
    labels = torch.arange(40) % 4
    centres = 10 * torch.eye(4)[labels].double()
    apart, mixed = separation(centres + normal(40, 4), labels), separation(normal(40, 4), labels)
    assert apart is not None
    assert mixed is not None
    assert apart["separation/ratio"] < 0.3
    assert mixed["separation/ratio"] == pytest.approx(1, abs=0.1)
    assert apart["separation/silhouette"] > 0.6 > 0.1 > mixed["separation/silhouette"]
    assert apart["separation/davies_bouldin"] < 1 < mixed["separation/davies_bouldin"]


def test_the_ratio_is_of_mean_distances():
    features = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
    found = separation(features, torch.tensor([0, 0, 1, 1]))
    assert found is not None
    assert found["separation/ratio"] == pytest.approx(((1 + 2) / 2) / ((4 + 6 + 3 + 5) / 4))


def test_half_precision_features_are_separated_and_too_few_classes_are_not():
    labels = torch.tensor([0, 0, 1, 1])
    assert separation(normal(4, 3).bfloat16(), labels) is not None
    assert separation(normal(4, 3), torch.zeros(4, dtype=torch.int64)) is None
    assert separation(normal(4, 3), torch.arange(4)) is None


def filled(counts: list[int], capacity: int) -> SampleQueue:
    queue = SampleQueue(len(counts), capacity, (1,))
    for number, count in enumerate(counts):
        queue.push(torch.full((count,), number, dtype=torch.int64), torch.zeros(count, 1))
    return queue


def test_entropy_is_of_what_was_pushed_and_does_not_saturate_when_rings_are_full():
    uneven = queue_statistics(filled([97, 1, 1, 1], 1))
    assert uneven["queue/occupancy_mean"] == uneven["queue/occupancy_min"] == 1  # all rings are full
    assert uneven["queue/entropy"] < 0.15
    assert uneven["queue/largest_share"] == 0.97
    even = queue_statistics(filled([25] * 4, 1))
    assert even["queue/entropy"] == pytest.approx(1)
    assert even["queue/largest_share"] == 0.25


def test_empty_classes_are_counted():
    found = queue_statistics(filled([6, 0, 2, 0], 4), "negatives")
    assert found["negatives/occupancy_mean"] == 1.5
    assert found["negatives/occupancy_min"] == 0
    assert found["negatives/empty_share"] == 0.5
    nothing = queue_statistics(filled([0, 0], 4))
    assert nothing["queue/entropy"] == nothing["queue/largest_share"] == 0
    assert queue_statistics(filled([5], 4))["queue/entropy"] == 0
