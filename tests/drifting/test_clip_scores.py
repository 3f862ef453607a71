"""Scores of refined clips: what each figure is of, and that comparisons tell better from worse with an interval."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from latentloom.drifting import distances
from latentloom.drifting.clips.pictures import MARK_COLOUR, MARK_PIXELS, contact_sheet
from latentloom.drifting.clips.random_features import RandomFeatures
from latentloom.drifting.clips.scores import (
    BEST_PSNR,
    PIXEL_PEAK,
    ClipScores,
    aggregate_clips,
    compare_kid,
    compare_psnr,
    score_clips,
)
from latentloom.drifting.distances import kernel_difference, kernel_distance
from latentloom.errors import ShapeError
from latentloom.keyframes.frame_interpolation import interpolate_frames

NUM, SHAPE = 24, (3, 9, 6, 6)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Fréchet distance's interval takes seconds, and no test here is of it."""
    monkeypatch.setattr(distances, "NUM_RESAMPLES", 40)


@pytest.fixture(scope="module")
def clean() -> Tensor:
    """Smooth waves, which move."""
    generator = torch.Generator().manual_seed(0)
    phase = torch.rand(NUM, 3, 1, 1, 1, generator=generator) * 6
    speed = torch.rand(NUM, 1, 1, 1, 1, generator=generator) * 0.6 + 0.2
    frame, row, column = (
        torch.arange(size).view([-1 if i == axis else 1 for i in range(5)]) for axis, size in ((2, 9), (3, 6), (4, 6))
    )
    return 0.8 * torch.sin(phase + speed * frame + 0.7 * row + 0.3 * column)


@pytest.fixture(scope="module")
def space(clean: Tensor) -> RandomFeatures:
    return RandomFeatures(3).fit_unit(clean)


@pytest.fixture(scope="module")
def given() -> Tensor:
    return (torch.arange(9) % 4 == 0).expand(NUM, -1)


def noisy(clips: Tensor, given: Tensor, sigma: float, seed: int = 0) -> Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(seed)) * sigma
    return torch.where(given[:, None, :, None, None], clips, clips + noise)


def test_psnr_is_that_of_the_mean_error_of_the_missing_frames(space, clean, given):
    refined = clean.clone()
    refined[:, :, 0] += 100  # a given frame does not count
    refined[0, :, 1::4] += 0.2  # two of six missing frames of the first clip
    refined[1:, :, 1] += 0.1
    found = score_clips(space, refined, clean, given, peak=PIXEL_PEAK)
    errors = torch.tensor([2 * 0.04] + [0.01] * (NUM - 1)).double()
    torch.testing.assert_close(found.clip_errors, errors, rtol=1e-5, atol=1e-5)
    assert found.psnr is not None
    assert found.mse_missing is not None
    assert found.psnr.value == pytest.approx(10 * math.log10(4 / float(errors.mean() / 6)), rel=1e-5)
    assert found.psnr.low <= found.psnr.value <= found.psnr.high
    assert found.mse_missing.value == pytest.approx((2 * 0.04 / 6 + 23 * 0.01 / 6) / 24, rel=1e-4)


def test_psnr_by_distance_looks_at_frames_of_that_distance_alone(space, clean, given):
    refined = clean.clone()
    refined[:, :, [1, 3, 5, 7]] += 0.1  # one frame away
    refined[:, :, [2, 6]] += 0.4  # two
    found = score_clips(space, refined, clean, given, peak=PIXEL_PEAK).psnr_by_distance
    assert list(found) == [1, 2]
    assert found[1].value == pytest.approx(10 * math.log10(4 / 0.01), rel=1e-5)
    assert found[2].value == pytest.approx(10 * math.log10(4 / 0.16), rel=1e-5)


def test_the_peak_is_the_range_of_the_clean_clips_where_none_is_given(space, clean, given):
    refined = noisy(clean, given, 0.1)
    of_range, of_pixels = (score_clips(space, refined, clean, given, peak=peak) for peak in (None, PIXEL_PEAK))
    assert of_range.peak == pytest.approx(float(clean.max() - clean.min()))
    shift = 20 * math.log10(of_pixels.peak / of_range.peak)
    assert of_pixels.psnr is not None
    assert of_range.psnr is not None
    assert of_pixels.psnr.value - shift == pytest.approx(of_range.psnr.value)


def test_exact_clips_have_the_best_scores(space, clean, given):
    found = score_clips(space, clean.clone(), clean, given)
    assert found.psnr is not None
    assert found.psnr.value == BEST_PSNR
    assert found.fd.value == pytest.approx(0, abs=1e-6)
    assert found.kid.value == pytest.approx(0, abs=1e-6)


def test_clips_of_which_everything_was_given_have_distances_alone(space, clean):
    found = score_clips(space, clean, clean, torch.ones(NUM, 9, dtype=torch.bool))
    assert (found.psnr, found.mse_missing, found.psnr_by_distance) == (None, None, {})
    assert json.loads(json.dumps(found.to_json()))["psnr"] is None
    with pytest.raises(ShapeError, match="same missing frames"):
        compare_psnr(found, found)


def test_a_clip_without_missing_frames_is_left_out_of_the_mean(space, clean, given):
    given = given.clone()
    given[0] = True
    refined = noisy(clean, given, 0.1)
    found = score_clips(space, refined, clean, given)
    assert found.psnr is not None
    assert found.num_missing.tolist() == [0] + [6] * (NUM - 1)
    mean = float(found.clip_errors[1:].mean()) / 6
    assert found.psnr.value == pytest.approx(10 * math.log10(found.peak**2 / mean))


def test_interpolation_that_is_better_is_seen_to_beat_the_other(space, clean, given):
    # of the fastest waves half a period lies between two keyframes: there a smooth curve overshoots
    errors = (interpolate_frames(clean, given, "linear") - clean).square().mean(dim=(1, 2, 3, 4))
    slow = errors.argsort()[: NUM // 2]
    clean, given = clean[slow], given[slow]
    smooth, linear = (
        score_clips(space, interpolate_frames(clean, given, mode), clean, given) for mode in ("smooth", "linear")
    )
    gain, nearer = compare_psnr(smooth, linear), compare_kid(smooth, linear)
    assert gain.low > 0
    assert nearer.high < 0
    assert smooth.psnr is not None
    assert linear.psnr is not None
    assert gain.value == pytest.approx(smooth.psnr.value - linear.psnr.value)
    assert nearer.value == pytest.approx(smooth.kid.value - linear.kid.value)
    back = compare_psnr(linear, smooth)
    assert (back.value, back.low, back.high) == pytest.approx((-gain.value, -gain.high, -gain.low), abs=1e-4)


def test_clips_that_come_back_exactly_do_not_outweigh_the_others(space, clean, given):
    still = clean[:, :, :1].expand_as(clean)
    both = torch.cat([clean, still])
    masks = torch.cat([given, given])
    linear = interpolate_frames(both, masks, "linear")
    refined = both + 0.5 * (linear - both) + 1e-3  # half the error where there is one, and a little everywhere
    better, worse = (score_clips(space, clips, both, masks) for clips in (refined, linear))
    gain = compare_psnr(better, worse)
    assert gain.low > 5


def test_methods_that_are_alike_do_not_beat_each_other(space, clean, given):
    one, other = (score_clips(space, noisy(clean, given, 0.1, seed), clean, given) for seed in (0, 1))
    gain, nearer = compare_psnr(one, other), compare_kid(one, other)
    assert gain.low < 0 < gain.high
    assert nearer.low < 0 < nearer.high


def test_the_paired_interval_is_narrower_than_that_of_either_method(space, clean, given):
    strength = torch.linspace(0.02, 0.5, NUM).view(-1, 1, 1, 1, 1)  # clips differ far more than methods do
    error = noisy(torch.zeros_like(clean), given, 1.0) * strength
    worse, better = (score_clips(space, clean + error * factor, clean, given) for factor in (1.1, 1.0))
    gain = compare_psnr(better, worse)
    assert worse.psnr is not None
    assert 0 < gain.low <= gain.high
    assert gain.high - gain.low < 0.1 * (worse.psnr.high - worse.psnr.low)


def test_scores_of_several_seeds_become_their_mean_and_range(space, clean, given):
    ones = [score_clips(space, noisy(clean, given, sigma, 1), clean, given) for sigma in (0.1, 0.2, 0.3)]
    together = aggregate_clips(ones)
    values = [one.psnr.value for one in ones if one.psnr]
    assert together.psnr is not None
    assert (together.psnr.value, together.psnr.low, together.psnr.high) == pytest.approx(
        (sum(values) / 3, min(values), max(values))
    )
    assert (together.num_seeds, together.num_clips, len(together.features)) == (3, NUM, 3)
    assert together.psnr_by_distance[2].low == min(one.psnr_by_distance[2].value for one in ones)
    assert aggregate_clips(ones[:1]) is ones[0]
    gain, nearer = compare_psnr(together, ones[2]), compare_kid(together, ones[2])
    worst, mean = (float(one.clip_errors.mean()) for one in (ones[2], together))
    assert gain.value == pytest.approx(10 * math.log10(worst / mean), rel=1e-4)
    assert nearer.value == pytest.approx(together.kid.value - ones[2].kid.value)


def test_the_difference_of_kernel_distances_is_that_of_single_sets():
    generator = torch.Generator().manual_seed(0)
    truth, a, b = (torch.randn(30, 5, generator=generator) for _ in range(3))
    b = b + 1
    difference = kernel_difference([a], [b, b], truth)
    expected = kernel_distance(a, truth, paired=True) - kernel_distance(b, truth, paired=True)
    assert difference.value == pytest.approx(expected)
    assert difference.high < 0
    assert kernel_difference([a], [a], truth).high == 0
    with pytest.raises(ShapeError, match="29 and 30 samples are not pairs"):
        kernel_difference([a], [b[:29]], truth)


def test_scores_of_other_clips_are_not_compared(space, clean, given):
    one = score_clips(space, clean, clean, given)
    other = score_clips(space, clean[:12], clean[:12], given[:12])
    for compare in (compare_psnr, compare_kid, lambda a, b: aggregate_clips([a, b])):
        with pytest.raises(ShapeError, match="24 and 12 clips that are not the same"):
            compare(one, other)
    elsewhere: ClipScores = score_clips(space, clean, clean, given, peak=3.0)
    with pytest.raises(ShapeError, match="another range"):
        compare_psnr(one, elsewhere)


def test_a_single_clip_and_broken_values_are_refused(space, clean, given):
    with pytest.raises(ShapeError, match="give two or more clips"):
        score_clips(space, clean[:1], clean[:1], given[:1])
    broken = clean.clone()
    broken[3, 0, 1, 0, 0] = math.nan
    with pytest.raises(ShapeError, match="1 of 24 refined clips"):
        score_clips(space, broken, clean, given)


def test_a_contact_sheet_marks_given_frames_only():
    clip, given = torch.zeros(3, 5, 32, 32), torch.tensor([True, False, False, False, True])
    plain = contact_sheet([clip, clip], ["clean", "refined"], torch.zeros(5, dtype=torch.bool))
    marked = contact_sheet([clip, clip], ["clean", "refined"], given)
    assert marked.shape == plain.shape
    side = 64 + 2 * MARK_PIXELS
    assert _num_orange(marked) == 2 * 2 * (side**2 - 64**2)  # two rows of two given frames
    assert _num_orange(plain) == 0


def _num_orange(picture: np.ndarray) -> int:
    return int((np.abs(picture.astype(int) - np.array(MARK_COLOUR) * 255).max(axis=-1) < 2).sum())


def test_long_clips_are_shown_in_17_frames_with_both_ends():
    clip = torch.zeros(1, 40, 8, 8)
    clip[:, 0], clip[:, -1] = 1, -1
    sheet = contact_sheet([clip], ["clean"], torch.zeros(40, dtype=torch.bool))
    short = contact_sheet([clip[:, :17]], ["clean"], torch.zeros(17, dtype=torch.bool))
    assert sheet.shape == short.shape
    assert (sheet == 0).all(axis=-1).sum() == 64**2  # the last frame is black


def test_a_contact_sheet_of_no_clips_is_refused():
    with pytest.raises(ShapeError, match="give clips alike"):
        contact_sheet([], [], torch.ones(4, dtype=torch.bool))
