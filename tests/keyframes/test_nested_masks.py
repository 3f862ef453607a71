"""Levels give fewer and fewer patches, each a part of those before."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import level_counts, nested_masks
from latentloom.keyframes.schedule import Schedule

SCHEDULES: list[Schedule] = ["geom", "linear", "doubling"]


@given(num_patches=st.integers(2, 300), min_given=st.integers(1, 299), num_levels=st.integers(1, 300), data=st.data())
def test_every_count_is_really_smaller_and_the_ends_are_kept(num_patches, min_given, num_levels, data):
    schedule = data.draw(st.sampled_from(SCHEDULES))
    assume(min_given < num_patches)
    if schedule == "doubling":
        fits = min_given * 2 ** (num_levels - 1) < num_patches
    else:
        fits = num_levels <= num_patches - min_given
    if not fits:
        with pytest.raises(ConfigError, match=r"give at most \d+ levels"):
            level_counts(num_patches, num_levels, min_given, schedule)
        return
    counts = level_counts(num_patches, num_levels, min_given, schedule)
    assert len(counts) == num_levels
    assert counts[-1] == min_given
    assert all(later < earlier for earlier, later in pairwise((num_patches, *counts)))


@given(num_patches=st.integers(2, 60), min_given=st.integers(1, 59), schedule=st.sampled_from(SCHEDULES))
def test_the_most_levels_that_the_error_names_do_fit(num_patches, min_given, schedule):
    assume(min_given < num_patches)
    with pytest.raises(ConfigError, match=r"give at most (\d+) levels") as error:
        level_counts(num_patches, 1000, min_given, schedule)
    most = int(str(error.value).split("at most ")[1].split()[0])
    assert len(level_counts(num_patches, most, min_given, schedule)) == most


@pytest.mark.parametrize(
    ("schedule", "counts"),
    [("geom", (128, 64, 32, 16)), ("linear", (196, 136, 76, 16)), ("doubling", (128, 64, 32, 16))],
)
def test_counts_between_256_and_16(schedule, counts):
    assert level_counts(256, 4, 16, schedule) == counts


def test_geom_divides_and_linear_takes_away():
    assert level_counts(1000, 3, 1, "geom") == (100, 10, 1)
    assert level_counts(16, 3, 4, "linear") == (12, 8, 4)
    assert level_counts(100, 3, 3, "doubling") == (12, 6, 3)


def test_where_rounding_would_repeat_a_count_the_earlier_level_keeps_one_more():
    assert level_counts(8, 7, 1, "geom") == (7, 6, 5, 4, 3, 2, 1)
    assert level_counts(9, 6, 1, "geom") == (6, 5, 4, 3, 2, 1)  # rounding alone: 6, 4, 3, 2, 1, 1


def test_one_level_is_the_smallest_number_of_given_patches():
    assert {level_counts(16, 1, 4, schedule) for schedule in SCHEDULES} == {(4,)}


@pytest.mark.parametrize(("num_patches", "num_levels", "min_given"), [(16, 2, 0), (16, 2, 16), (16, 0, 4), (1, 1, 1)])
def test_nothing_given_nothing_missing_and_no_level_are_refused(num_patches, num_levels, min_given):
    with pytest.raises(ConfigError, match="give at least 1"):
        level_counts(num_patches, num_levels, min_given, "geom")


@given(num_patches=st.integers(2, 40), batch=st.integers(1, 5), seed=st.integers(0, 999), data=st.data())
def test_masks_hold_their_counts_and_each_is_part_of_the_one_before(num_patches, batch, seed, data):
    counts = tuple(sorted(data.draw(st.sets(st.integers(1, num_patches), min_size=1)), reverse=True))
    masks = nested_masks(counts, num_patches, batch, torch.Generator().manual_seed(seed))
    assert masks.shape == (len(counts), batch, num_patches)
    assert masks.sum(dim=2).tolist() == [[count] * batch for count in counts]
    for earlier, later in pairwise(masks):
        assert not (later & ~earlier).any()


def test_masks_follow_the_generator_and_differ_between_images():
    first, again, other = (nested_masks((8, 4), 16, 32, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first[1]}) > 25


def test_every_patch_is_given_equally_often():
    share = nested_masks((4,), 16, 8000, torch.Generator().manual_seed(0))[0].float().mean(dim=0)
    assert torch.allclose(share, torch.full((16,), 0.25), atol=0.025)  # five standard deviations


@pytest.mark.parametrize("counts", [(), (4, 4), (4, 8), (17, 4), (4, 0)])
def test_counts_that_do_not_fall_are_refused(counts):
    with pytest.raises(ShapeError, match="give falling numbers from 16 to 1"):
        nested_masks(counts, 16, 1, torch.Generator())
