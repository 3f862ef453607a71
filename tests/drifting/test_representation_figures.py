"""Separation, retrieval, occupancy and kernel: figures that are known for made-up vectors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.drifting.representation.kernel import view_kernel
from latentloom.drifting.representation.occupancy import occupancy, poor_because
from latentloom.drifting.representation.reading import read_off
from latentloom.drifting.representation.retrieval import agreement, class_consistency, nearest_neighbours
from latentloom.drifting.representation.separation import sampled_separation, whole_classes
from latentloom.errors import ShapeError


def groups(num_classes=6, num_members=10, spread=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(num_members)
    centres = torch.randn(num_classes, 5, generator=generator) * 3
    return centres[labels] + spread * torch.randn(len(labels), 5, generator=generator), labels


def test_even_classes_have_the_perplexity_of_their_number():
    figures = occupancy(torch.full((8,), 5))
    assert figures.perplexity == pytest.approx(8)
    assert figures.entropy == pytest.approx(math.log(8))
    assert figures.dominance == pytest.approx(1 / 8)
    assert (figures.empty_share, figures.near_empty_share, figures.num_used) == (0, 0, 8)
    assert poor_because(figures) is None


def test_empty_and_single_classes_are_counted():
    figures = occupancy(torch.tensor([0, 1, 4, 7]))
    assert (figures.empty_share, figures.singleton_share, figures.near_empty_share) == (0.25, 0.25, 0.5)
    assert (figures.mean, figures.median, figures.num_used, figures.num_samples) == (3, 2.5, 3, 12)
    assert (figures.p10, figures.p90) == pytest.approx((0.3, 6.1))


@settings(max_examples=50)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any))
def test_perplexity_lies_between_one_and_the_number_of_used_classes(members):
    figures = occupancy(torch.tensor(members))
    assert 1 - 1e-9 <= figures.perplexity <= figures.num_used + 1e-9
    assert figures.near_empty_share == pytest.approx(figures.empty_share + figures.singleton_share)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([100, *[2] * 9], "is below 0.5 of the 10 classes"),
        ([*[20] * 97, 1, 0, 1], "3.0% of the 100 classes have at most 1 member"),
        ([*[20] * 98, 1, 0], None),
    ],
)
def test_the_rule_for_fewer_classes(members, reason):
    found = poor_because(occupancy(torch.tensor(members)))
    assert found is None if reason is None else reason in found


def test_no_members_are_refused():
    with pytest.raises(ShapeError, match="no class has a member"):
        occupancy(torch.zeros(3, dtype=torch.int64))


def test_separation_tells_real_classes_from_shuffled_ones():
    vectors, labels = groups()
    figures = sampled_separation(vectors, labels)
    assert figures is not None
    assert figures["separation/ratio"] < 0.2
    assert figures["shuffled/separation/ratio"] == pytest.approx(1, abs=0.1)
    assert figures["separation/silhouette"] > 0.8 > 0 > figures["shuffled/separation/silhouette"]
    assert figures["separation/davies_bouldin"] < figures["shuffled/separation/davies_bouldin"]
    assert (figures["separation/num_samples"], figures["separation/num_classes"]) == (60, 6)


def test_a_large_set_is_sampled_by_whole_classes_of_at_least_two():
    labels = torch.cat([torch.arange(50).repeat_interleave(4), torch.arange(50, 60)])
    rows = whole_classes(labels, 40, seed=0)
    numbers, counts = labels[rows].unique(return_counts=True)
    assert len(rows) == 40
    assert counts.tolist() == [4] * 10
    assert numbers.max() < 50
    assert not torch.equal(rows, whole_classes(labels, 40, seed=1))


def test_a_huge_class_leaves_room_for_another():
    labels = torch.tensor([0] * 100 + [1] * 3)
    assert labels[whole_classes(labels, 20, seed=0)].unique().tolist() == [0, 1]


def test_classes_without_pairs_have_no_separation():
    assert sampled_separation(torch.randn(5, 2), torch.arange(5)) is None
    assert sampled_separation(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)) is None


def test_neighbours_are_the_nearest_others_in_order():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]]) + 1e4
    assert nearest_neighbours(points, 10).tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [2, 1, 0]]


def test_consistency_counts_neighbours_of_the_own_class():
    labels = torch.tensor([0, 0, 1, 1])
    neighbours = torch.tensor([[1, 2, 3], [2, 0, 3], [3, 0, 1], [0, 1, 2]])
    figures = class_consistency(labels, neighbours, (1, 3))
    assert figures["retrieval/top1"] == 0.5
    assert figures["retrieval/top3"] == pytest.approx(1 / 3)
    assert figures["retrieval/any3"] == 1
    assert figures["retrieval/chance"] == pytest.approx(1 / 3)


def test_chance_is_what_random_labels_reach():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (1500,), generator=generator)
    figures = class_consistency(labels, nearest_neighbours(torch.randn(1500, 4, generator=generator), 10))
    assert figures["retrieval/top10"] == pytest.approx(figures["retrieval/chance"], abs=0.015)


def test_neighbours_agree_more_than_random_pairs():
    vectors, labels = groups(num_classes=20)
    generator = torch.Generator().manual_seed(1)
    texts = torch.randn(20, 8, generator=generator)[labels]
    keyframes = torch.randn(20, 12, generator=generator)[labels]
    figures = agreement(nearest_neighbours(vectors, 5), texts, keyframes, peak=2.0)
    assert figures["agreement/text_cosine"] == pytest.approx(1, abs=1e-5)
    assert figures["agreement/keyframe_correlation"] == pytest.approx(1, abs=1e-5)
    assert figures["agreement/keyframe_error"] == pytest.approx(0, abs=1e-6)
    assert figures["random/agreement/text_cosine"] < 0.2
    assert figures["random/agreement/keyframe_error"] > 0.5
    assert figures["agreement/keyframe_psnr"] > 60 > 10 > figures["random/agreement/keyframe_psnr"]


def test_psnr_is_that_of_the_error_and_the_peak():
    keyframes = torch.tensor([[0.0, 0.0], [0.2, 0.2]])
    figures = agreement(torch.tensor([[1], [0]]), None, keyframes, peak=2.0)
    assert figures["agreement/keyframe_psnr"] == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)
    assert "agreement/text_cosine" not in figures
    assert "agreement/keyframe_psnr" not in agreement(torch.tensor([[1], [0]]), None, keyframes)


def test_the_kernel_sees_positives_where_classes_are_apart():
    apart = view_kernel(*groups(num_members=20), [0.1])
    mixed = view_kernel(torch.randn(120, 5, generator=torch.Generator().manual_seed(0)), groups(6, 20)[1], [0.1])
    assert apart is not None
    assert mixed is not None
    assert apart.statistics["kernel/0.1/positive_share"] > 0.65
    assert apart.statistics["kernel/distance_pos_p90"] < apart.statistics["kernel/distance_neg_p10"]
    assert mixed.statistics["kernel/distance_pos_p50"] == pytest.approx(
        mixed.statistics["kernel/distance_neg_p50"], rel=0.1
    )
    assert apart.num_targets == 3 + 8 + 8
    assert 1 <= apart.statistics["kernel/0.1/neighbours"] <= apart.num_targets


def test_small_classes_are_viewed_with_what_they_have():
    view = view_kernel(*groups(num_members=3), [0.1])
    assert view is not None
    assert view.num_targets == 0 + 2 + 8
    assert view_kernel(*groups(num_members=2), [0.1]) is None
    assert view_kernel(torch.randn(9, 2), torch.zeros(9, dtype=torch.int64), [0.1]) is None


def test_readings_follow_their_rules():
    good = {
        "separation": {"separation/ratio": 0.5, "shuffled/separation/ratio": 1.0},
        "retrieval": {"retrieval/top5": 0.9, "retrieval/chance": 0.1},
        "agreement": {"agreement/text_cosine": 0.6, "random/agreement/text_cosine": 0.0},
        "kernel": {"num_targets": 19.0, "kernel/0.1/neighbours": 1.2, "kernel/0.1/positive_share": 0.5},
    }
    even = occupancy(torch.full((10,), 8))
    answers = {reading.question: reading.verdict for reading in read_off(good, even, are_pseudo_classes=True)}
    assert answers["Are the classes evenly used?"] == "yes"
    assert answers["Are classes apart?"] == "yes"
    assert answers["Do neighbours share the class?"] == "yes"
    assert answers["Do neighbours agree in prompts?"] == "yes"
    assert answers["Do neighbours agree in keyframes?"] == "the data have no keyframes"
    assert answers["Does the kernel see a neighbourhood at temperature 0.1?"] == "too sharp"


def test_a_collapsed_codebook_is_told():
    collapsed = occupancy(torch.tensor([980, *[0] * 30, *[1] * 20]))
    readings = read_off({}, collapsed, are_pseudo_classes=True)
    answers = {reading.question: reading.verdict for reading in readings}
    assert answers["Are the classes evenly used?"] == "no: use fewer classes"
    assert answers["Do classes have members?"] == "no: use fewer classes"
    assert answers["Is no class far too large?"].startswith("no: the vectors have collapsed")
    assert {reading.found for reading in readings[3:]} == {"not measured"}
