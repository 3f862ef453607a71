"""Encoded pairs: both sides and their texts stay together."""

import pytest
import torch
from delta_caches import DIM, embeddings, some_cache, some_pairs

from latentloom.delta.cache import PairEmbeddings
from latentloom.errors import ShapeError


def test_rows_of_both_sides_and_their_texts_stay_together():
    cache = some_cache()
    chosen = cache[[2, 0]]
    assert torch.equal(chosen.rewritten.to_list()[0], cache.rewritten.to_list()[2])
    assert torch.equal(chosen.base.to_list()[1], cache.base.to_list()[0])
    assert chosen.pairs == [some_pairs(3)[2], some_pairs(3)[0]]
    assert (chosen.encoder, chosen.dim, len(chosen)) == (cache.encoder, DIM, 2)
    assert len(cache[torch.tensor([False, True, False])]) == len(cache[-1]) == len(cache[1:2]) == 1
    assert len(cache[[]]) == 0
    assert [len(row) for row in cache] == [1, 1, 1]


def test_without_texts_rows_can_be_chosen_too():
    assert PairEmbeddings(embeddings([1, 2], 0), embeddings([3, 4], 1))[1].pairs is None


def test_sides_that_do_not_belong_together_are_refused():
    with pytest.raises(ShapeError, match=r"2 of 6 channels in torch\.float32 and 1 of 6"):
        PairEmbeddings(embeddings([1, 2], 0), embeddings([3], 1))
    with pytest.raises(ShapeError, match=r"torch\.bfloat16"):
        PairEmbeddings(embeddings([1], 0), embeddings([3], 1, torch.bfloat16))
    with pytest.raises(ShapeError, match="3 texts for 1 encoded pairs"):
        PairEmbeddings(embeddings([1], 0), embeddings([3], 1), some_pairs(3))
