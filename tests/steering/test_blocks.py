"""Presets count the model's own blocks, patterns say exactly which ones, ramps run over the chosen ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.steering.blocks import PRESETS, block_strengths, parse_blocks, picture

NUM_BLOCKS = st.integers(1, 60)


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("early_blocks", range(10)),
        ("mid_blocks", range(10, 30)),
        ("late_blocks", range(30, 40)),
        ("first_half", range(20)),
        ("second_half", range(20, 40)),
        ("alternating", range(0, 40, 2)),
        ("sparse", range(0, 40, 4)),
        ("all", range(40)),
        ("none", ()),
    ],
)
def test_presets_of_forty_blocks_are_the_documents(name, blocks):
    assert parse_blocks(name, 40) == tuple(blocks)


@given(NUM_BLOCKS)
def test_the_three_parts_and_the_two_halves_cover_every_block_once(num_blocks):
    parts = [parse_blocks(name, num_blocks) for name in ("early_blocks", "mid_blocks", "late_blocks")]
    halves = [parse_blocks(name, num_blocks) for name in ("first_half", "second_half")]
    if num_blocks > 1:
        assert sorted(sum(parts, ())) == list(range(num_blocks))
    assert sorted(sum(halves, ())) == list(range(num_blocks))


def test_the_model_of_thirty_blocks_gets_its_own_quarters():
    assert parse_blocks("early_blocks", 30) == tuple(range(8))
    assert parse_blocks("late_blocks", 6) == (4, 5)


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("0-2,5", (0, 1, 2, 5)),
        (" 5 , 0 - 2 ", (0, 1, 2, 5)),
        ("3", (3,)),
        ("0,0,0-1", (0, 1)),
        ("010101", (1, 3, 5)),
        ("000000", ()),
    ],
)
def test_custom_patterns(pattern, blocks):
    assert parse_blocks(pattern, 6) == blocks


def test_digits_are_a_pattern_only_with_one_digit_per_block():
    assert parse_blocks("10", 12) == (10,)
    with pytest.raises(ConfigError, match="6 blocks, 0 to 5"):
        parse_blocks("0101", 6)


@pytest.mark.parametrize("pattern", ["", "late", "1-", "-1", "0..3", "a", "1,,2"])
def test_a_pattern_that_is_not_understood_is_refused_with_what_is(pattern):
    with pytest.raises(ConfigError, match="early_blocks"):
        parse_blocks(pattern, 6)


@pytest.mark.parametrize("pattern", ["6", "0-6", "4-2"])
def test_a_block_that_the_model_lacks_is_refused(pattern):
    with pytest.raises(ConfigError, match="0 to 5"):
        parse_blocks(pattern, 6)


def test_a_ramp_runs_from_the_first_chosen_block_to_the_last():
    assert block_strengths("1,3,5", 6, "0..1") == (0.0, 0.0, 0.0, 0.5, 0.0, 1.0)
    assert block_strengths("2", 4, "0.3..0.9") == (0.0, 0.0, 0.3, 0.0)
    assert block_strengths("0-1", 2, "1..-1") == (1.0, -1.0)


def test_strengths_may_be_given_one_by_one():
    assert block_strengths("0,2", 3, "0.25,1") == (0.25, 0.0, 1.0)
    assert block_strengths("0,2", 3, "0.5") == (0.5, 0.0, 0.5)
    with pytest.raises(ConfigError, match="2 strengths for 3 blocks"):
        block_strengths("all", 3, "0.1,0.2")
    with pytest.raises(ConfigError, match="not understood"):
        block_strengths("all", 3, "strong")


@given(NUM_BLOCKS, st.sampled_from(sorted(PRESETS)), st.floats(0.1, 1))
def test_strengths_are_zero_exactly_outside_the_pattern(num_blocks, name, strength):
    strengths = block_strengths(name, num_blocks, strength)
    assert len(strengths) == num_blocks
    assert tuple(block for block, value in enumerate(strengths) if value) == parse_blocks(name, num_blocks)


def test_the_picture_shows_one_character_per_block():
    assert picture((1.0, 0.0, -0.5)) == "█░█"
