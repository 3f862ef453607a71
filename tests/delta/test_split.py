"""Which pairs train, validate and test: every row once, equal prompts on one side, the same at the same seed."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair, normalise
from latentloom.delta.split import Split
from latentloom.errors import ConfigError
from latentloom.tensors import TextEmbeddings

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0.1, 0.3)


def cache(bases: Sequence[str] | None, num: int = 0) -> PairEmbeddings:
    num = num if bases is None else len(bases)
    side = TextEmbeddings(torch.zeros(num, 2), torch.ones(num, dtype=torch.long))
    pairs = None if bases is None else [PromptPair(base, f"rewrite {row}") for row, base in enumerate(bases)]
    return PairEmbeddings(side, side, pairs)


def spelled(number: int, way: int) -> str:
    return [f"a red boat {number}", f"  A  Red boat {number}", f"a red boat {number}."][way]


@given(st.lists(st.integers(1, 4), min_size=15, max_size=30), st.randoms(), shares, shares, seeds)
def test_every_row_has_one_part_and_prompts_that_differ_in_spelling_share_it(sizes, random, val_frac, test_frac, seed):
    bases = [spelled(number, way % 3) for number, size in enumerate(sizes) for way in range(size)]
    random.shuffle(bases)
    split = Split.of(cache(bases), val_frac, test_frac, seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(row for part in parts for row in part) == list(range(len(bases)))
    assert all(part == sorted(part) for part in parts)
    names = [{normalise(bases[row]) for row in part} for part in parts]
    num_groups = len(set().union(*names))
    assert sum(map(len, names)) == num_groups
    assert (len(names[1]), len(names[2])) == (round(val_frac * num_groups), round(test_frac * num_groups))
    assert split == Split.of(cache(bases), val_frac, test_frac, seed)


def test_seeds_draw_different_splits():
    pairs = cache(None, 50)
    assert Split.of(pairs, 0.2, 0.2, 0) == Split.of(pairs, 0.2, 0.2, 0)
    assert Split.of(pairs, 0.2, 0.2, 0) != Split.of(pairs, 0.2, 0.2, 1)


def test_without_texts_every_pair_is_a_group():
    split = Split.of(cache(None, 20), 0.1, 0.25, 3)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [13, 2, 5]
    assert sorted(split.train + split.validation + split.test) == list(range(20))


def test_the_test_part_may_be_empty():
    assert Split.of(cache(None, 20), 0.1, 0.0, 0).test == []


@pytest.mark.parametrize(
    ("num", "val_frac", "test_frac"), [(0, 0.1, 0.1), (1, 0.5, 0), (3, 0.1, 0), (10, 0.5, 0.5), (20, 0, 0.1)]
)
def test_too_few_pairs_to_train_or_validate_are_refused(num, val_frac, test_frac):
    with pytest.raises(ConfigError, match=rf"^{num} pairs with val_frac={val_frac} and test_frac={test_frac} leave"):
        Split.of(cache(None, num), val_frac, test_frac, 0)


def test_one_prompt_with_many_rewrites_cannot_be_split():
    with pytest.raises(ConfigError, match=r"40 pairs .* give more pairs or other shares"):
        Split.of(cache(["a boat"] * 40), 0.3, 0.1, 0)
