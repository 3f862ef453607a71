"""Small caches of made-up pairs, and what it means for two to be the same."""

import os
from collections.abc import Callable

import pytest
import torch

from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.tensors import TextEmbeddings

SUFFIXES = pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
DIM = 6


def embeddings(lengths: list[int], seed: int, dtype: torch.dtype = torch.float32) -> TextEmbeddings:
    tokens = torch.randn(sum(lengths), DIM, generator=torch.Generator().manual_seed(seed))
    return TextEmbeddings(tokens.to(dtype), torch.tensor(lengths, dtype=torch.long))


def some_pairs(num: int) -> list[PromptPair]:
    return [PromptPair(f"boat {'x' * (row % 5)}{row}", f"A long boat, number {row}, 雨 \ud800.") for row in range(num)]


def some_cache(dtype: torch.dtype = torch.float32) -> PairEmbeddings:
    sides = embeddings([3, 0, 2], 1, dtype), embeddings([4, 6, 1], 2, dtype)
    return PairEmbeddings(*sides, pairs=some_pairs(3), encoder="0123456789abcdef")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def assert_same(found: PairEmbeddings, expected: PairEmbeddings) -> None:
    for one, other in ((found.base, expected.base), (found.rewritten, expected.rewritten)):
        assert one.dtype == other.dtype
        assert torch.equal(bits(one.tokens), bits(other.tokens))
        assert torch.equal(one.lengths, other.lengths)
    assert found.pairs == expected.pairs
    assert found.encoder == expected.encoder


def in_child(work: Callable[[], int]) -> int:
    """The exit code of a copy of this process that does the work, or minus the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
