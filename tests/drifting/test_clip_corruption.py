"""Keyframes taken away and filled in: given frames stay as they are in every mode, and draws hang on no batch."""

from typing import Any

import pytest
import torch
from blob_shards import NUM_FRAMES, blobs

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FrameHoles, Keyframes, StudentFrames
from latentloom.errors import ConfigError
from latentloom.keyframes import interpolate_frames
from latentloom.keyframes.sinkhorn import SinkhornWarper

MODES = ("linear", "smooth", "flow", "sinkhorn", "learned")
NOISES = ("none", "dist", "gauss")
NUM_CLIPS = 5


def keyframes(**changes: Any) -> Keyframes:
    config = ClipConfig.model_validate({"num_levels": 3, **changes})
    warper = SinkhornWarper(3).requires_grad_(False) if config.interp_mode == "learned" else None
    return Keyframes(config, NUM_FRAMES, warper)


def holes_of(subject: Keyframes, num: int = NUM_CLIPS, seed: int = 1, level: int | None = None) -> FrameHoles:
    return subject.draw_holes(num, torch.Generator().manual_seed(seed), level)


def students(clips: torch.Tensor) -> StudentFrames:
    """Another model's version of every second frame; values that no clip has."""
    has_frame = torch.zeros(len(clips), NUM_FRAMES, dtype=torch.bool)
    has_frame[:, ::2] = True
    return StudentFrames(torch.full_like(clips, 7.0), has_frame)


def by_frame(clips: torch.Tensor) -> torch.Tensor:
    """[B, T, ...], to be picked from by masks."""
    return clips.transpose(1, 2)


@pytest.mark.parametrize("schedule", ["uniform", "random"])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("mode", MODES)
def test_given_frames_stay_bit_for_bit_in_every_mode(mode, noise, schedule):
    subject = keyframes(interp_mode=mode, corrupt_mode=noise, corrupt_sigma=0.5, keyframe_schedule=schedule)
    clips = blobs(NUM_CLIPS)
    for level in (None, 0, 1, 2):
        holes = holes_of(subject, level=level)
        filled = subject.fill(clips, holes)
        given = holes.given
        assert torch.equal(filled.given, given)
        assert torch.equal(by_frame(filled.values)[given], by_frame(clips)[given])
        assert bool((filled.confidence[given] == 1).all())
        assert bool((filled.confidence[~given] < 1).all())
        assert bool(filled.values.isfinite().all())
        assert torch.equal(filled.level, holes.level)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("mode", MODES)
def test_missing_frames_are_never_read(mode, noise):
    subject = keyframes(interp_mode=mode, corrupt_mode=noise)
    clips = blobs(NUM_CLIPS)
    holes = holes_of(subject)
    unknown = torch.where(holes.given[:, None, :, None, None], clips, torch.nan)
    assert torch.equal(subject.fill(unknown, holes).values, subject.fill(clips, holes).values)


@pytest.mark.parametrize("mode", MODES)
def test_only_replaced_frames_change_and_they_are_no_given_ones(mode):
    subject = keyframes(interp_mode=mode, corrupt_mode="gauss", student_replace_prob=0.5)
    clips = blobs(32)
    holes = holes_of(subject, num=32)
    filled = subject.fill(clips, holes, students(clips))
    replaced = holes.given & ~filled.given
    assert bool(replaced.any())
    assert bool(filled.given.any())
    assert not bool((filled.given & ~holes.given).any())
    assert torch.equal(by_frame(filled.values)[filled.given], by_frame(clips)[filled.given])
    assert bool((by_frame(filled.values)[replaced] == 7).all())  # no noise on them either
    assert bool((filled.confidence[replaced] < 1).all())
    assert bool((filled.confidence[filled.given] == 1).all())


def test_frames_around_a_replaced_one_are_filled_in_from_it_and_trusted_less():
    subject = keyframes(student_replace_prob=1.0)
    clips = blobs(NUM_CLIPS)
    holes = holes_of(subject, level=1)  # frames 0, 4 and 8
    filled, own = subject.fill(clips, holes, students(clips)), subject.fill(clips, holes)
    assert not bool(filled.given.any())
    assert torch.allclose(filled.values, torch.full_like(clips, 7.0))
    assert bool((filled.confidence < own.confidence).all())


def test_keyframes_that_the_other_model_lacks_stay():
    subject = keyframes(student_replace_prob=1.0)
    clips = blobs(NUM_CLIPS)
    found = students(clips)
    found.has_frame[:, 0] = False
    filled = subject.fill(clips, holes_of(subject, level=2), found)
    assert filled.given.sum(dim=1).tolist() == [1] * NUM_CLIPS
    assert torch.equal(filled.values[:, :, 0], clips[:, :, 0])


def test_without_a_probability_nothing_is_replaced():
    subject = keyframes()
    clips, holes = blobs(NUM_CLIPS), holes_of(subject)
    assert torch.equal(subject.fill(clips, holes, students(clips)).values, subject.fill(clips, holes).values)


@pytest.mark.parametrize("mode", ["linear", "sinkhorn", "flow"])
def test_what_a_clip_gets_does_not_hang_on_its_batch(mode):
    subject = keyframes(interp_mode=mode, corrupt_mode="dist", corrupt_sigma=0.5, student_replace_prob=0.5)
    clips, holes = blobs(6), holes_of(subject, num=6)
    found = students(clips)
    whole = subject.fill(clips, holes, found)
    parts = [
        subject.fill(clips[rows], holes[rows], StudentFrames(found.values[rows], found.has_frame[rows]))
        for rows in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    for name in ("given", "confidence", "level"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert torch.allclose(torch.cat([part.values for part in parts]), whole.values, atol=1e-6)


def test_a_clip_has_noise_of_its_own_with_the_deviation_of_the_settings():
    clips = torch.zeros(40, 3, NUM_FRAMES, 8, 8)
    even = keyframes(corrupt_mode="gauss", corrupt_sigma=0.5)
    holes = holes_of(even, num=40, level=2)  # both ends
    values = even.fill(clips, holes).values
    assert not torch.equal(values[0], values[1])
    assert values[:, :, 1:-1].std() == pytest.approx(0.5, rel=0.02)
    growing = keyframes(corrupt_mode="dist", corrupt_sigma=0.5).fill(clips, holes).values
    deviations = [float(growing[:, :, frame].std()) for frame in range(NUM_FRAMES)]
    expected = [0.5 * min(frame, 8 - frame) / 4 for frame in range(NUM_FRAMES)]
    assert deviations == pytest.approx(expected, rel=0.05)


def test_levels_are_nested_from_many_keyframes_to_few_and_all_are_drawn():
    subject = keyframes(keyframe_schedule="random")
    holes = holes_of(subject, num=64)
    assert holes.masks.sum(dim=2).unique(dim=1).flatten().tolist() == [5, 3, 2]
    assert bool((holes.masks[:-1] | ~holes.masks[1:]).all())
    assert bool(holes.masks[:, :, [0, -1]].all())
    assert holes.level.unique().tolist() == [0, 1, 2]
    assert holes_of(subject, level=1).level.tolist() == [1] * NUM_CLIPS
    assert len(holes.seed.unique()) == 64


def test_a_level_that_is_named_changes_nothing_else_that_is_drawn():
    subject = keyframes(keyframe_schedule="random")
    drawn, named = holes_of(subject), holes_of(subject, level=2)
    assert torch.equal(drawn.masks, named.masks)
    assert torch.equal(drawn.seed, named.seed)


@pytest.mark.parametrize("mode", ["linear", "smooth"])
def test_an_adjacent_target_is_the_next_denser_level_and_ends_at_the_clip(mode):
    subject = keyframes(target="adjacent", objective="mse", interp_mode=mode, corrupt_mode="gauss")
    clips, holes = blobs(24), holes_of(subject, num=24)
    target = subject.target(clips, holes)
    assert torch.equal(target[holes.level == 0], clips[holes.level == 0])
    for level in (1, 2):
        rows = holes.level == level
        denser = interpolate_frames(clips[rows], holes.masks[level - 1, rows], mode)
        assert torch.equal(target[rows], denser)
        assert not torch.equal(denser, interpolate_frames(clips[rows], holes.masks[level, rows], mode))


def test_a_clean_target_is_the_clip():
    subject, clips = keyframes(), blobs(NUM_CLIPS)
    assert subject.target(clips, holes_of(subject)) is clips


def test_more_levels_than_the_frames_can_be_halved_into_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="at most 3 levels") as raised:
        keyframes(num_levels=4)
    assert "\n" not in str(raised.value)
