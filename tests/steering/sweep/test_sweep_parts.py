"""The parts of a sweep: names, joins, families and orders."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.steering.blocks import parse_blocks
from latentloom.steering.plan import PromptPayload
from latentloom.steering.sweep.parts import (
    Part,
    Units,
    part_families,
    plain_orders,
    preset_parts,
    random_orders,
)
from latentloom.tensors import TextEmbeddings


def test_a_part_says_its_blocks_and_its_window():
    assert Part((0, 1, 2, 5)).key == "0-2,5"
    assert Part(()).key == "none"
    assert Part((3,), (0.2, 0.4)).key == "3@0.2-0.4"


@given(st.sets(st.integers(0, 39), min_size=1))
def test_a_parts_key_reads_back_as_its_blocks(blocks):
    part = Part(tuple(sorted(blocks)))
    assert parse_blocks(part.key, 40) == part.blocks


def test_a_part_becomes_a_plan_that_replaces_the_context_of_its_blocks_on_the_positive_side():
    text = TextEmbeddings(torch.ones(3, 4), torch.tensor([1, 2]))
    (operation,) = Part((1, 3), (0.0, 0.5)).plan(text, 4).operations
    assert operation.strengths == (0.0, 1.0, 0.0, 1.0)
    assert (operation.site, operation.method, operation.side) == ("context", "replace", "cond")
    assert operation.window == (0.0, 0.5)
    assert isinstance(operation.payload, PromptPayload)
    assert operation.payload.text is text


def test_families_of_single_blocks():
    units = Units.of_blocks(4)
    assert [part.blocks for part in units.single().values()] == [(0,), (1,), (2,), (3,)]
    assert {label: part.blocks for label, part in units.prefix().items()} == {
        "first 1": (0,),
        "first 2": (0, 1),
        "first 3": (0, 1, 2),
        "first 4": (0, 1, 2, 3),
    }
    assert [part.blocks for part in units.suffix().values()] == [(3,), (2, 3), (1, 2, 3), (0, 1, 2, 3)]
    assert units.left_out()["all but 2"].blocks == (0, 1, 3)
    assert units.every() == Part((0, 1, 2, 3))
    assert len({part.key for part in units.subsets()}) == 16


def test_groups_are_swapped_together_and_the_last_may_be_smaller():
    units = Units.of_blocks(7, group_size=3)
    assert units.names == ("0-2", "3-5", "6")
    assert units.noun == "group"
    assert units.left_out()["all but 3-5"].blocks == (0, 1, 2, 6)


def test_windows_cover_the_schedule_and_join_with_their_neighbours_alone():
    windows = Units.of_windows(5, 2)
    assert windows.names == ("0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1")
    assert windows.join([2, 1]) == Part((0, 1), (0.2, 0.6))
    assert windows.every() == Part((0, 1)) == Units.of_blocks(2).every()
    assert windows.join([]) == Part(())
    with pytest.raises(ConfigError, match="not neighbours"):
        windows.join([0, 2])


def test_all_families_of_a_model_of_six_blocks():
    units, windows = Units.of_blocks(6), Units.of_windows(5, 6)
    names = ("presets", "single", "windows")
    families = part_families(names, units, windows, 6)
    assert list(families) == ["single", "presets", "windows", "windows_prefix", "windows_suffix"]
    assert families["presets"] == preset_parts(6)
    assert families["presets"]["none"] == Part(())
    assert families["presets"]["all"] == units.every()
    assert list(families["windows_prefix"]) == ["until 0.2", "until 0.4", "until 0.6", "until 0.8", "until 1"]
    assert list(families["windows_suffix"]) == ["from 0", "from 0.2", "from 0.4", "from 0.6", "from 0.8"]
    assert families["windows_suffix"]["from 0.6"].window == (0.6, 1.0)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Units.of_blocks(6, 7), "groups of 7 blocks in a model of 6; use 1 to 6"),
        (lambda: Units.of_windows(0, 6), "0 windows"),
        (lambda: Units.of_blocks(11).subsets(), "11 blocks have 2048 subsets; give a larger --group-size"),
        (lambda: part_families(["singel"], Units.of_blocks(2), Units.of_windows(2, 2), 2), "'singel' as sets"),
        (lambda: part_families([], Units.of_blocks(2), Units.of_windows(2, 2), 2), "nothing as sets"),
    ],
)
def test_what_a_model_does_not_have_is_refused(attempt, message):
    with pytest.raises(ConfigError, match=message):
        attempt()


def test_orders_hold_every_unit_once_and_come_with_their_reverse():
    assert plain_orders(3) == [(0, 1, 2), (2, 1, 0)]
    orders = random_orders(5, 6, seed=1)
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert orders[1] == orders[0][::-1]
    assert orders == random_orders(5, 6, seed=1)
    assert len(random_orders(5, 3)) == 3


def test_a_walk_goes_from_none_to_all():
    walk = Units.of_blocks(3).along((2, 0, 1))
    assert [part.blocks for part in walk] == [(), (2,), (0, 2), (0, 1, 2)]
