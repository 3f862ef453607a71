"""Levels give fewer and fewer frames, each a part of those before, with both ends of the clip."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.keyframes import frame_levels, nested_frame_masks
from latentloom.keyframes.frame_schedule import FrameSchedule

SCHEDULES: list[FrameSchedule] = ["uniform", "random"]


def most_levels(num_frames: int, min_given: int) -> int:
    with pytest.raises(ConfigError, match=r"give at most \d+ levels") as error:
        frame_levels(num_frames, 1000, min_given)
    return int(str(error.value).split("at most ")[1].split()[0])


def test_17_frames_in_four_levels_have_strides_of_2_4_8_and_16():
    assert frame_levels(17, 4) == tuple(tuple(range(0, 17, stride)) for stride in (2, 4, 8, 16))


def test_frames_that_are_no_power_of_two_apart():
    assert frame_levels(21, 4) == ((0, 2, 5, 7, 10, 12, 15, 17, 20), (0, 5, 10, 15, 20), (0, 10, 20), (0, 20))
    assert frame_levels(9, 2, 4) == ((0, 1, 3, 4, 5, 6, 8), (0, 3, 5, 8))
    assert frame_levels(2, 1, 1) == ((0,),)
    assert frame_levels(9, 3, 1) == ((0, 4, 8), (0, 8), (0,))


@given(num_frames=st.integers(2, 130), min_given=st.integers(1, 129))
def test_levels_are_nested_keep_the_ends_halve_gaps_and_miss_a_frame(num_frames, min_given):
    assume(min_given < num_frames)
    levels = frame_levels(num_frames, most_levels(num_frames, min_given), min_given)
    assert len(levels[-1]) == min_given
    assert len(levels[0]) < num_frames
    for denser, sparser in pairwise(levels):
        assert set(sparser) < set(denser)
        assert list(denser) == sorted(denser)
        if len(sparser) > 1:
            assert max(b - a for a, b in pairwise(denser)) == -(-max(b - a for a, b in pairwise(sparser)) // 2)
    if min_given >= 2:
        assert all((frames[0], frames[-1]) == (0, num_frames - 1) for frames in levels)


@pytest.mark.parametrize(("num_frames", "num_levels", "min_given"), [(17, 1, 0), (17, 1, 17), (17, 0, 2), (2, 1, 2)])
def test_nothing_given_nothing_missing_and_no_level_are_refused(num_frames, num_levels, min_given):
    with pytest.raises(ConfigError, match="give at least 1"):
        frame_levels(num_frames, num_levels, min_given)


@given(num_frames=st.integers(3, 40), min_given=st.integers(1, 6), batch=st.integers(1, 4), seed=st.integers(0, 99))
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_masks_hold_the_counts_of_the_levels_nested_with_both_ends(schedule, num_frames, min_given, batch, seed):
    assume(min_given < num_frames)
    num_levels = most_levels(num_frames, min_given)
    generator = torch.Generator().manual_seed(seed)
    masks = nested_frame_masks(num_frames, num_levels, batch, generator, min_given=min_given, schedule=schedule)
    levels = frame_levels(num_frames, num_levels, min_given)
    assert masks.sum(dim=2).tolist() == [[len(frames)] * batch for frames in levels]
    for denser, sparser in pairwise(masks):
        assert not (sparser & ~denser).any()
    assert masks[:, :, 0].all()
    if min_given >= 2:
        assert masks[:, :, -1].all()


def test_uniform_masks_are_the_levels_in_every_clip():
    masks = nested_frame_masks(17, 4, 3, torch.Generator(), schedule="uniform")
    for level, frames in enumerate(frame_levels(17, 4)):
        assert [row.nonzero().flatten().tolist() for row in masks[level]] == [list(frames)] * 3


def test_random_masks_follow_the_generator_and_give_every_inner_frame_equally_often():
    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return nested_frame_masks(17, 3, 4000, generator, min_given=3, schedule="random")

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    share = draw(0)[-1].float().mean(dim=0)
    assert torch.allclose(share[1:-1], torch.full((15,), 1 / 15), atol=0.02)  # five standard deviations
