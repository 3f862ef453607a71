"""What a drawn clip shows: geometry, range, reproducibility."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.micro.attributes import BACKGROUNDS, COLOURS, Attributes, all_attributes
from latentloom.micro.world import RADII, SHAPES, TRAVEL, Scene, draw_clips, draw_scene, sample_scene

COMBINATIONS = list(all_attributes())
LARGE = [item for item in COMBINATIONS if item.size == "large" and (item.colour, item.background) == ("red", "white")]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), form=st.sampled_from([(9, 48), (17, 48), (9, 64), (17, 64)]))
def test_the_whole_object_stays_inside_the_frame(seed, form):
    num_frames, frame_size = form
    clips = draw_clips(LARGE, generator(seed), num_frames=num_frames, frame_size=frame_size)
    assert clips.shape == (20, 3, num_frames, frame_size, frame_size)
    border = torch.cat([clips[..., 0, :], clips[..., -1, :], clips[..., 0], clips[..., -1]], dim=-1)
    white, red = (torch.tensor(rgb)[:, None, None] for rgb in (BACKGROUNDS["white"], COLOURS["red"]))
    cover = ((border - white) / (red - white)).amax(dim=(1, 2, 3))
    for item, share in zip(LARGE, cover.tolist(), strict=True):
        # the blur of a triangle's tip may touch the outermost pixel; a shape cut off would cover it wholly
        assert share < (0.3 if item.shape == "triangle" else 1e-4), item


def test_values_lie_between_the_colour_and_the_background():
    for start in range(0, 720, 90):
        items = COMBINATIONS[start : start + 90 : 3]
        clips = draw_clips(items, generator(start))
        assert clips.dtype == torch.float32
        assert clips.min() >= 0
        assert clips.max() <= 1
        for clip, item in zip(clips, items, strict=True):
            ends = torch.tensor([COLOURS[item.colour or ""], BACKGROUNDS[item.background or ""]])
            assert torch.allclose(clip.amin(dim=(1, 2, 3)), ends.amin(dim=0), atol=1e-6)
            assert torch.allclose(clip.amax(dim=(1, 2, 3)), ends.amax(dim=0), atol=1e-6)


def test_the_same_generator_draws_the_same_clips_and_another_seed_others():
    items = COMBINATIONS[::60]
    clips = draw_clips(items, generator(3))
    assert torch.equal(clips, draw_clips(items, generator(3)))
    assert not torch.equal(clips, draw_clips(items, generator(4)))


@pytest.mark.parametrize(("num_frames", "frame_size"), [(8, 48), (9, 32), (0, 48), (9, 480), (48, 9)])
def test_another_number_of_frames_or_size_is_refused_with_the_choices(num_frames, frame_size):
    with pytest.raises(ConfigError, match=r"choose frames from \(9, 17\) and a size from \(48, 64\)"):
        draw_clips(COMBINATIONS[:1], generator(), num_frames=num_frames, frame_size=frame_size)


def test_radius_and_way_are_those_of_the_attributes_at_every_frame_size():
    for frame_size in (48, 64):
        scene = sample_scene(COMBINATIONS, generator(1), frame_size=frame_size)
        scale = frame_size / 48
        way = (scene.centre[:, -1] - scene.centre[:, 0]) / scale
        axis = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
        for item, radius, (x, y) in zip(COMBINATIONS, scene.radius / scale, way.tolist(), strict=True):
            low, high = RADII[item.size or ""]
            assert low - 1e-4 <= radius <= high + 1e-4
            if item.motion == "still":
                assert (x, y) == (0, 0)
                continue
            along, sign = axis[item.motion or ""]
            assert TRAVEL[0] - 1e-4 <= sign * (x, y)[along] <= TRAVEL[1] + 1e-4
            assert (x, y)[1 - along] == 0


def test_seventeen_frames_show_the_nine_and_those_between():
    items = COMBINATIONS[::40]
    nine, seventeen = draw_clips(items, generator(2)), draw_clips(items, generator(2), num_frames=17)
    assert torch.allclose(seventeen[:, :, ::2], nine, atol=1e-4)


def test_the_same_seed_draws_the_same_scene_larger():
    small, large = sample_scene(COMBINATIONS, generator(5)), sample_scene(COMBINATIONS, generator(5), frame_size=64)
    assert torch.allclose(large.radius, small.radius * 4 / 3)
    assert torch.allclose(large.centre, small.centre * 4 / 3, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "area"),
    # in squared radii: a disc; a square as large as it; an equilateral triangle of inradius 0.675; two bars
    [("circle", 3.1416), ("square", 3.1400), ("triangle", 2.3673), ("cross", 3.0400)],
)
def test_a_shape_covers_its_area(shape, area):
    scene = Scene(
        shape=torch.tensor([SHAPES.index(shape)]),
        colour=torch.ones(1, 3),
        background=torch.zeros(1, 3),
        radius=torch.tensor([10.0]),
        centre=torch.full((1, 1, 2), 24.0),
    )
    assert draw_scene(scene, 48)[0, 0].sum().item() == pytest.approx(area * 100, rel=0.02)


def test_up_is_towards_the_first_row():
    clips = draw_clips([Attributes("red", "triangle", "large", "up", "black")], generator())
    rows = clips[0, 0].sum(dim=2)
    centre = (rows * torch.arange(48)).sum(dim=1) / rows.sum(dim=1)
    assert centre[-1] < centre[0] - TRAVEL[0] / 2
    assert clips[0, 0, 0].sum(dim=1).argmax() > centre[0]  # the broad side of a triangle lies below
