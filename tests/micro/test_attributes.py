"""The combinations a clip can show, and which of them training never sees."""

import hashlib
from collections import Counter

import pytest

from latentloom.micro.attributes import (
    UNSEEN_PAIRS,
    VALUES,
    Attributes,
    all_attributes,
    is_held_out,
    is_unseen_pair,
    split,
)

SPLITS = {"train": 592, "held_out": 68, "unseen_pair": 60}


def test_there_are_720_different_combinations_and_each_is_complete():
    combinations = list(all_attributes())
    assert len(combinations) == len(set(combinations)) == 720
    assert all(list(item.mentioned()) == list(VALUES) for item in combinations)


@pytest.mark.parametrize(("name", "size"), SPLITS.items())
def test_the_splits_have_their_sizes(name, size):
    assert len(split(name)) == size


def test_the_splits_are_disjoint_and_cover_everything():
    parts = [set(split(name)) for name in SPLITS]
    assert set.union(*parts) == set(all_attributes())
    assert sum(len(part) for part in parts) == 720


def test_the_held_out_split_is_the_one_the_shipped_weights_were_trained_without():
    listing = "\n".join("|".join(item.mentioned().values()) for item in split("held_out"))
    assert hashlib.sha256(listing.encode()).hexdigest()[:16] == "57ed5177c3d25fe5"


def test_training_shows_every_value_and_held_out_tests_every_value():
    for name in ("train", "held_out"):
        counts = Counter(value for item in split(name) for value in item.mentioned().values())
        assert set(counts) == {value for values in VALUES.values() for value in values}


def test_training_shows_both_halves_of_an_unseen_pair_but_never_together():
    shown = {(item.colour, item.shape) for item in split("train")}
    assert shown.isdisjoint(UNSEEN_PAIRS)
    assert len(shown) == 6 * 4 - 2
    assert len(UNSEEN_PAIRS) >= 2


def test_an_unseen_pair_is_not_held_out_as_well():
    assert not any(is_held_out(item) and is_unseen_pair(item) for item in all_attributes())


def test_an_unknown_split_is_a_key_error():
    with pytest.raises(KeyError):
        split("test")


def test_an_attribute_left_open_is_not_mentioned():
    item = Attributes("red", "circle", "small", "left", "black")
    assert item.without("size", "motion").mentioned() == {"colour": "red", "shape": "circle", "background": "black"}
    assert item.without() == item
    assert Attributes().mentioned() == {}
