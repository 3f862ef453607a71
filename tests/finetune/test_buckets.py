"""Buckets: sizes that the model can take, chosen by shape and length."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.finetune.buckets import Buckets, aspect_ratios
from latentloom.wan import facts
from latentloom.wan.clip_size import ClipSize, LatentGrid

FACTS = facts.get("ti2v-5b")
models = st.sampled_from(["ti2v-5b", "t2v-a14b", "micro"]).map(facts.get)
sides = st.integers(64, 2048)
frame_counts = st.lists(st.integers(0, 30).map(lambda n: 4 * n + 1), min_size=1, max_size=4)
ranges = st.tuples(st.floats(0.2, 5), st.floats(1, 4), st.integers(1, 9))


@given(models, st.lists(sides, min_size=1, max_size=3), ranges, frame_counts, sides, sides, st.integers(1, 200))
def test_every_item_gets_a_size_of_the_model_per_resolution(
    model, resolutions, ratios, counts, width, height, num_frames
):
    low, factor, num = ratios
    buckets = Buckets.of(resolutions, aspect_ratios(low, low * factor, num), counts, model)
    if num_frames < min(counts):
        with pytest.raises(ConfigError, match="frame_buckets"):
            buckets.assign(width, height, num_frames)
        return
    sizes = buckets.assign(width, height, num_frames)
    assert 1 <= len(sizes) <= len(resolutions)
    for size in sizes:
        LatentGrid.of(model).check(size)
        assert size.num_frames == max(count for count in counts if count <= num_frames)


@given(ranges, sides, sides)
def test_no_other_bucket_is_nearer_in_shape(ratios, width, height):
    low, factor, num = ratios
    buckets = Buckets.of([512], aspect_ratios(low, low * factor, num), [1], FACTS)
    (chosen,) = buckets.assign(width, height, 1)

    def distance(size: tuple[int, int]) -> float:
        return abs(math.log(size[0] / size[1] / (width / height)))

    nearest = min(distance(size) for size in buckets.frame_sizes[0])
    assert distance((chosen.width, chosen.height)) == nearest


@given(st.integers(256, 1536), st.floats(0.5, 2))
def test_a_bucket_keeps_the_area_of_its_resolution_up_to_rounding(side, ratio):
    buckets = Buckets.of([side], [ratio], [1], FACTS)
    ((width, height),) = buckets.frame_sizes[0]
    assert abs(width - side * math.sqrt(ratio)) <= 16
    assert abs(height - side / math.sqrt(ratio)) <= 16


def test_a_number_is_a_square_and_a_pair_is_that_size_without_aspect_ratio_buckets():
    assert Buckets.of([512], None, [1], FACTS).assign(1920, 1080, 1) == [ClipSize(1, 512, 512)]
    assert Buckets.of([(832, 480)], None, [1], FACTS).assign(100, 100, 1) == [ClipSize(1, 480, 832)]
    assert Buckets.of([(1280, 720)], None, [1], FACTS).frame_sizes == (((1280, 704),),), "sides are whole tokens"


def test_a_pair_gives_the_area_of_aspect_ratio_buckets():
    buckets = Buckets.of([(768, 192)], [0.5, 1.0, 2.0], [1], FACTS)
    assert buckets.assign(10, 10, 1) == [ClipSize(1, 384, 384)]


def test_images_and_short_videos_go_to_shorter_buckets():
    buckets = Buckets.of([256], None, [33, 1, 81], FACTS)
    got = [buckets.assign(10, 10, num_frames)[0].num_frames for num_frames in (1, 32, 33, 80, 500)]
    assert got == [1, 1, 33, 33, 81]


def test_the_range_is_divided_into_equal_factors():
    assert aspect_ratios(0.5, 2.0, 3) == pytest.approx([0.5, 1.0, 2.0])
    assert aspect_ratios(0.5, 2.0, 1) == pytest.approx([1.0])


def test_frames_that_the_model_cannot_take_are_refused():
    with pytest.raises(ConfigError, match="use 5 or 9"):
        Buckets.of([256], None, [8], FACTS)
