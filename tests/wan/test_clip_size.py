"""Sizes a model cannot make are refused with the nearest ones it can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.wan import facts
from latentloom.wan.clip_size import ClipSize, LatentGrid

MICRO = LatentGrid(channels=16, temporal_stride=4, spatial_stride=8, patch=(1, 2, 2))
TI2V_5B = LatentGrid.of(facts.get("ti2v-5b"))


def test_shapes_and_tokens_of_the_default_clips():
    assert LatentGrid.of(facts.get("micro")) == MICRO
    assert MICRO.shape(ClipSize(9, 48, 48)) == (16, 3, 6, 6)
    assert MICRO.num_tokens(ClipSize(9, 48, 48)) == 27
    assert TI2V_5B.shape(ClipSize.for_model(facts.get("ti2v-5b"))) == (48, 31, 44, 80)
    assert TI2V_5B.num_tokens(ClipSize(121, 704, 1280)) == 27_280


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (ClipSize(10, 48, 48), "num_frames=10 is not 4k.1; use 9 or 13"),
        (ClipSize(0, 48, 48), "num_frames=0 .* use 1$"),
        (ClipSize(-3, 48, 48), "num_frames=-3 .* use 1$"),
        (ClipSize(9, 50, 48), "height=50 is not a multiple of 16, .* use 48 or 64"),
        (ClipSize(9, 48, 8), "width=8 .* use 16$"),
        (ClipSize(9, 0, 48), "height=0 .* use 16$"),
    ],
)
def test_a_size_that_does_not_fit_names_the_nearest_that_do(size: ClipSize, message: str):
    with pytest.raises(ConfigError, match=message):
        MICRO.check(size)


@given(st.integers(-5, 200), st.integers(-20, 300), st.integers(-20, 300))
def test_a_size_is_accepted_exactly_when_it_divides_into_tokens(num_frames: int, height: int, width: int):
    size = ClipSize(num_frames, height, width)
    if num_frames > 0 and num_frames % 4 == 1 and min(height, width) > 0 and height % 16 == width % 16 == 0:
        assert MICRO.num_tokens(size) == ((num_frames - 1) // 4 + 1) * (height // 16) * (width // 16)
    else:
        with pytest.raises(ConfigError):
            MICRO.check(size)


def test_a_size_takes_the_models_default_where_nothing_is_given():
    assert ClipSize.for_model(facts.get("micro"), width=64) == ClipSize(9, 48, 64)
    with pytest.raises(ConfigError, match="height=48 is not a multiple of 32"):
        ClipSize.for_model(facts.get("ti2v-5b"), height=48)
