"""The reader finds what was drawn, exactly on clean clips and nearly always under noise."""

from collections import Counter

import pytest
import torch

from latentloom.micro.attributes import BACKGROUNDS, VALUES, Attributes, all_attributes
from latentloom.micro.read import read_clips
from latentloom.micro.world import draw_clips, sample_scene

COMBINATIONS = list(all_attributes())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("num_frames", "frame_size", "every"), [(9, 48, 2), (17, 64, 11)], ids=["48 pixels, 9 frames", "64, 17"]
)
def test_drawn_clips_read_back_exactly(num_frames, frame_size, every):
    items = COMBINATIONS[::every]
    assert {value for item in items for value in item.mentioned().values()} == {v for vs in VALUES.values() for v in vs}
    readings = read_clips(draw_clips(items, generator(7), num_frames=num_frames, frame_size=frame_size))
    assert [reading.attributes for reading in readings] == items
    assert max(reading.misfit for reading in readings) < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_combination_reads_back_exactly(seed):
    for num_frames, frame_size in ((9, 48), (17, 64)):
        for start in range(0, 720, 72):
            items = COMBINATIONS[start : start + 72]
            clips = draw_clips(items, generator(seed), num_frames=num_frames, frame_size=frame_size)
            assert [reading.attributes for reading in read_clips(clips)] == items


def test_noise_of_a_twentieth_costs_at_most_three_percent_of_any_attribute():
    items, source = COMBINATIONS[::4], generator(11)
    clips = draw_clips(items, source)
    noisy = clips + 0.05 * torch.randn(clips.shape, generator=source)
    right = Counter()
    for item, reading in zip(items, read_clips(noisy), strict=True):
        right.update(name for name, value in item.mentioned().items() if reading.attributes.mentioned()[name] == value)
    assert min(right[name] / len(items) for name in VALUES) >= 0.97


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_clip_without_an_object_has_only_a_background(background, noise):
    empty = torch.tensor(BACKGROUNDS[background])[None, :, None, None, None].expand(1, 3, 9, 48, 48)
    reading = read_clips(empty + noise * torch.randn(empty.shape, generator=generator()))[0]
    assert reading.attributes == Attributes(background=background)
    assert (reading.radius, reading.way) == (0.0, (0.0, 0.0))


def test_radius_and_way_are_measured_in_pixels_of_a_48_pixel_frame_at_every_size():
    items = COMBINATIONS[5::72]
    for frame_size in (48, 64):
        scene = sample_scene(items, generator(13), frame_size=frame_size)
        scale = frame_size / 48
        readings = read_clips(draw_clips(items, generator(13), frame_size=frame_size))
        for reading, radius, centre in zip(readings, scene.radius, scene.centre, strict=True):
            assert reading.radius == pytest.approx(float(radius) / scale, abs=0.4)
            assert reading.way == pytest.approx(((centre[-1] - centre[0]) / scale).tolist(), abs=0.2)


def test_enlarged_frames_read_the_same():
    items = COMBINATIONS[3::90]
    clips = draw_clips(items, generator(17))
    double = clips.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    assert [reading.attributes for reading in read_clips(double)] == items


def test_values_beyond_the_range_are_cut_off_and_half_precision_is_read():
    items = COMBINATIONS[::144]
    clips = draw_clips(items, generator(19))
    assert [reading.attributes for reading in read_clips((clips * 1.02 - 0.01).half())] == items


def test_a_reversed_clip_moves_the_other_way():
    items = [Attributes("red", "circle", "small", motion, "white") for motion in ("left", "right", "up", "down")]
    readings = read_clips(draw_clips(items, generator()).flip(2))
    assert [reading.attributes.motion for reading in readings] == ["right", "left", "down", "up"]
