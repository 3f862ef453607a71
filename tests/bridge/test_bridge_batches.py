"""Batches of similar lengths: every row once per epoch, the same for any number of processes and after a resume."""

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.bridge.batches import LengthBuckets
from latentloom.errors import ConfigError

sizes = st.integers(1, 90)
seeds = st.integers(0, 2**32 - 1)


def random_lengths(num: int, seed: int = 0) -> list[int]:
    return [random.Random(seed * 10_000 + row).randint(1, 60) for row in range(num)]


@given(num_rows=sizes, batch_size=st.integers(1, 12), num_processes=st.integers(1, 3), seed=seeds)
def test_every_row_comes_once_per_epoch_and_none_is_dropped(num_rows, batch_size, num_processes, seed):
    buckets = LengthBuckets(random_lengths(num_rows), batch_size, num_processes, seed)
    step_size = batch_size * num_processes
    num_steps = -(-4 * num_rows // step_size)
    steps = [[buckets.batch(step, rank) for rank in range(num_processes)] for step in range(num_steps)]
    assert all(len(rows) == batch_size for ranks in steps for rows in ranks)
    seen = [ranks[place % num_processes][place // num_processes] for ranks in steps for place in range(step_size)]
    for epoch in range(4):
        assert sorted(seen[epoch * num_rows : (epoch + 1) * num_rows]) == list(range(num_rows))


@given(num_rows=sizes, batch_size=st.integers(1, 8), num_processes=st.integers(2, 4), seed=seeds)
def test_processes_together_take_what_one_with_the_larger_batch_takes(num_rows, batch_size, num_processes, seed):
    lengths = random_lengths(num_rows)
    several = LengthBuckets(lengths, batch_size, num_processes, seed)
    single = LengthBuckets(lengths, batch_size * num_processes, 1, seed)
    for step in range(12):
        rows = single.batch(step)
        for rank in range(num_processes):
            assert several.batch(step, rank) == rows[rank::num_processes]


@given(num_rows=sizes, step=st.integers(0, 10_000), seed=seeds)
def test_a_step_depends_on_seed_and_number_and_not_on_the_steps_before(num_rows, step, seed):
    lengths = random_lengths(num_rows)
    walked = LengthBuckets(lengths, 4, 1, seed)
    for earlier in (0, 3, step // 2, step + 7):
        walked.batch(earlier)
    assert walked.batch(step) == LengthBuckets(lengths, 4, 1, seed).batch(step)


def test_another_seed_and_another_epoch_give_another_order():
    lengths = random_lengths(64)
    first = LengthBuckets(lengths, 8, 1, 0)
    epochs = [[row for step in range(8) for row in first.batch(8 * epoch + step)] for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    other = LengthBuckets(lengths, 8, 1, 1)
    assert [row for step in range(8) for row in other.batch(step)] != epochs[0]


def padding(lengths: list[int], batches: list[list[int]]) -> float:
    """Share of a padded batch's places that hold no token."""
    held = sum(lengths[row] for rows in batches for row in rows)
    return 1 - held / sum(max(lengths[row] for row in rows) * len(rows) for rows in batches)


def test_little_is_padded_where_random_batches_pad_much():
    lengths = random_lengths(2001)
    buckets = LengthBuckets(lengths, 16, 1, 0)
    bucketed = padding(lengths, [buckets.batch(step) for step in range(500)])
    rows = list(range(2001))
    random.Random(1).shuffle(rows)
    unsorted = padding(lengths, [rows[start : start + 16] for start in range(0, 2000, 16)])
    assert bucketed < 0.05 < 0.4 < unsorted


def test_batches_of_short_and_long_texts_alternate():
    lengths = random_lengths(1024)
    buckets = LengthBuckets(lengths, 16, 1, 0)
    means = [sum(lengths[row] for row in buckets.batch(step)) / 16 for step in range(64)]
    rises = sum(after > before for before, after in pairwise(means))
    assert 20 < rises < 44, "sorted batches in random order, not in rising or falling order"


def test_rows_that_share_a_batch_differ_between_epochs():
    buckets = LengthBuckets([5] * 64, 8, 1, 0)
    with_first = [rows for rows in map(buckets.batch, range(80)) if 0 in rows]
    partners = Counter(row for rows in with_first for row in rows)
    assert partners[0] == 10
    assert len(partners) > 30


def test_a_set_smaller_than_a_batch_is_repeated_within_it():
    buckets = LengthBuckets([3, 4, 5], 4, 2, 0)
    counts = Counter([*buckets.batch(0, 0), *buckets.batch(0, 1)])
    assert sorted(counts.values()) == [2, 3, 3]


def test_what_makes_no_batches_is_refused():
    with pytest.raises(ConfigError, match="no row"):
        LengthBuckets([], 4, 1, 0)
    with pytest.raises(ConfigError, match="1 or more"):
        LengthBuckets([1], 0, 1, 0)
    with pytest.raises(ConfigError, match="ranks end at 1"):
        LengthBuckets([1], 4, 2, 0).batch(0, 2)
    with pytest.raises(ConfigError, match="start at 0"):
        LengthBuckets([1], 4, 2, 0).batch(-1, 0)
