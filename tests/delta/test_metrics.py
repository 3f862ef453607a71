"""Figures about pooled prompts: exact numbers by hand, and what must not change them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta import metrics
from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

seeds = st.integers(0, 2**31)


def vectors(seed: int, num_rows: int = 12, dim: int = 5) -> torch.Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int, dim: int) -> torch.Tensor:
    return torch.linalg.qr(vectors(seed, dim, dim)).Q


def test_cosines_by_hand():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 3.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert metrics.cosines(a, b).tolist() == pytest.approx([0, math.sqrt(0.5), -1, 0])


def test_centred_cosines_subtract_the_first_centre_from_the_first_side_and_the_second_from_the_second():
    a, b = torch.tensor([[11.0, 0.0]]), torch.tensor([[0.0, 22.0]])
    centre_a, centre_b = torch.tensor([10.0, 0.0]), torch.tensor([-2.0, 20.0])
    assert metrics.cosines(a, b).item() == 0
    assert metrics.centred_cosines(a, b, centre_a, centre_b).item() == pytest.approx(math.sqrt(0.5))  # (1, 0), (2, 2)
    # the other way round (13, -20) and (-10, 22)
    swapped = metrics.centred_cosines(a, b, centre_b, centre_a).item()
    assert swapped == pytest.approx(-570 / math.hypot(13, 20) / math.hypot(10, 22))


def test_a_cosine_distance_is_exact_where_nothing_changed_and_right_where_little_did():
    one = vectors(0)
    assert metrics.cosine_distances(one, one.clone()).tolist() == [0.0] * 12
    turned = torch.tensor([[math.cos(1e-5), math.sin(1e-5)]], dtype=torch.float64)
    apart = metrics.cosine_distances(torch.tensor([[1.0, 0.0]]), turned).item()
    assert apart == pytest.approx(0.5e-10, rel=1e-6)  # 1 - cos in float64 is right to 1e-6 only


def test_a_cosine_distance_of_zero_vectors_says_whether_both_are():
    zero, some = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    assert metrics.cosine_distances(zero, zero).item() == 0
    assert metrics.cosine_distances(zero, some).item() == 1
    assert metrics.cosine_distances(some, -some).item() == 2


def test_ranks_count_the_targets_that_stand_before_the_right_one():
    targets = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.1], [1.0, 0.1], [1.0, 0.1]])
    assert metrics.retrieval_ranks(queries, targets, ["a", "b", "c"]).tolist() == [1, 2, 3]


def test_ties_count_against():
    same = torch.ones(3, 2)
    assert metrics.retrieval_ranks(same, same, ["a", "b", "c"]).tolist() == [3, 3, 3]


def test_all_targets_that_are_one_prompt_are_right():
    same = torch.ones(3, 2)
    assert metrics.retrieval_ranks(same, same, ["a", "a", "c"]).tolist() == [2, 2, 3]
    targets = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert metrics.retrieval_ranks(queries, targets, ["a", "b"]).tolist() == [2, 1]
    assert metrics.retrieval_ranks(queries, targets, ["a", "a"]).tolist() == [1, 1]


def test_retrieval_needs_a_label_for_every_target():
    with pytest.raises(ShapeError, match="1 labels for 2 targets"):
        metrics.retrieval_ranks(torch.ones(2, 2), torch.ones(2, 2), ["a"])


def test_ranks_do_not_depend_on_how_many_queries_are_ranked_at_once(monkeypatch):
    queries, targets = vectors(1), vectors(2)
    whole = metrics.retrieval_ranks(queries, targets, range(12))
    monkeypatch.setattr(metrics, "_QUERIES_AT_ONCE", 5)
    assert torch.equal(metrics.retrieval_ranks(queries, targets, range(12)), whole)


@given(seeds, st.permutations(range(12)))
def test_a_joint_permutation_permutes_the_ranks(seed, order):
    targets = vectors(seed)
    queries = targets + vectors(seed + 1)
    labels = [number % 9 for number in range(12)]
    ranks = metrics.retrieval_ranks(queries, targets, labels)
    permuted = metrics.retrieval_ranks(queries[order], targets[order], [labels[row] for row in order])
    assert torch.equal(permuted, ranks[order])


def test_cka_by_hand():
    a = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    b = torch.tensor([[1.0], [-1.0], [0.0], [0.0]])
    # |a^T b|^2 = 2^2, |a^T a| = sqrt(2^2 + 2^2), |b^T b| = 2
    assert metrics.linear_cka(a, b) == pytest.approx(4 / (math.sqrt(8) * 2))


@given(seeds, st.floats(0.01, 100), st.sampled_from([3, 40]))
def test_cka_ignores_rotation_common_scale_and_shift(seed, scale, num_rows):
    a = vectors(seed, num_rows)
    b = a + vectors(seed + 1, num_rows)
    plain = metrics.linear_cka(a, b)
    moved = metrics.linear_cka(a, scale * b @ rotation(seed, 5) + vectors(seed + 2, 1))
    assert plain is not None
    assert moved == pytest.approx(plain, abs=1e-9)
    assert metrics.linear_cka(b, a) == pytest.approx(plain, abs=1e-12)


def test_cka_of_the_same_vectors_is_exactly_1_in_few_and_in_many_channels():
    assert metrics.linear_cka(vectors(0, 40), vectors(0, 40)) == 1.0
    assert metrics.linear_cka(vectors(0, 3), vectors(0, 3)) == 1.0


@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_cka_is_undefined_where_all_rows_are_equal(num_rows):
    equal = vectors(0, 1).expand(num_rows, 5)
    assert metrics.linear_cka(equal, vectors(1, num_rows)) is None
    assert metrics.linear_cka(vectors(1, num_rows), equal) is None


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_neighbour_overlap_by_hand():
    before = on_circle(0, 1, 90, 92, 180, 183)
    after = on_circle(0, 1, 90, 178, 180, 92)  # the last ones of the second and third pair change places
    assert metrics.neighbour_overlap(before, after, 1) == pytest.approx(2 / 6)
    assert metrics.neighbour_overlap(before, before) == 1.0


def test_neighbour_overlap_looks_at_no_more_than_half_of_the_others():
    before, after = vectors(0, 5), vectors(1, 5)
    assert metrics.neighbour_overlap(before, after, 10) == metrics.neighbour_overlap(before, after, 2)
    assert metrics.neighbour_overlap(before[:2], after[:2]) is None


def test_norm_ratios_leave_out_what_was_zero():
    before = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    after = torch.tensor([[6.0, 8.0], [0.0, 0.0], [0.0, 0.5]])
    assert metrics.norm_ratios(before, after).tolist() == [2.0, 0.5]


def test_rounding_errors_by_hand():
    exact = TextEmbeddings(torch.tensor([[1.0, 0.5], [0.0, 0.0]]), torch.tensor([1, 1]))
    assert [errors.tolist() for errors in metrics.rounding_errors(exact)] == [[0, 0], [0, 0]]
    # 8 bits of precision: 1 + 2^-9 becomes 1
    inexact = TextEmbeddings(torch.tensor([[1 + 2**-9, 0.0], [0.0, 1.0]]), torch.tensor([2, 0]))
    distances, errors = metrics.rounding_errors(inexact)
    assert errors.tolist() == pytest.approx([2**-9 / (1 + 2**-9), 0])
    angle = math.atan(1) - math.atan(1 / (1 + 2**-9))
    assert distances.tolist() == pytest.approx([1 - math.cos(angle), 0], rel=1e-3)
