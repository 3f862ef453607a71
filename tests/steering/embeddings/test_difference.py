"""How far two prompts are apart: the measure that the amplifiers aim with."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ShapeError
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.tensors import TextEmbeddings


def prompts(*rows: list[list[float]]) -> TextEmbeddings:
    return TextEmbeddings.from_list([torch.tensor(row) for row in rows])


def test_known_pairs_have_known_differences():
    first = prompts([[3.0, 4.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[4.0, 0.0]])
    second = prompts([[3.0, 4.0]], [[0.0, 1.0]], [[-1.0, 0.0]], [[1.0, 0.0]])
    # equal, orthogonal, opposite, and 3 apart at norms 4 and 1
    assert relative_difference(first, second).tolist() == pytest.approx([0.0, math.sqrt(2), 2.0, 1.5])


def test_a_prompt_is_zero_beyond_its_length():
    short = prompts([[1.0, 0.0]])
    long = prompts([[1.0, 0.0], [0.0, 2.0]])
    expected = 2 / math.sqrt(math.sqrt(5))
    assert relative_difference(short, long).item() == pytest.approx(expected)


def test_a_longer_prompt_in_the_batch_does_not_change_a_pair():
    torch.manual_seed(0)
    pairs = [(torch.randn(3, 4), torch.randn(2, 4)), (torch.randn(9, 4), torch.randn(9, 4))]
    firsts, seconds = (TextEmbeddings.from_list(list(side)) for side in zip(*pairs, strict=True))
    together = relative_difference(firsts, seconds)
    alone = [relative_difference(firsts[row], seconds[row]).item() for row in range(2)]
    assert together.tolist() == pytest.approx(alone, rel=1e-6)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_it_is_symmetric_and_free_of_scale(seed: int, scale: float):
    torch.manual_seed(seed)
    first, second = TextEmbeddings.from_list([torch.randn(4, 8)]), TextEmbeddings.from_list([torch.randn(6, 8)])
    plain = relative_difference(first, second).item()
    larger = [TextEmbeddings(each.tokens * scale, each.lengths) for each in (second, first)]
    assert relative_difference(*larger).item() == pytest.approx(plain, rel=1e-5)


def test_nothing_against_nothing_is_zero_and_against_something_infinite():
    zero, something, empty = (
        prompts([[0.0, 0.0]]),
        prompts([[1.0, 1.0]]),
        TextEmbeddings(torch.zeros(0, 2), torch.tensor([0])),
    )
    assert relative_difference(zero, zero).tolist() == [0.0]
    assert relative_difference(empty, zero).tolist() == [0.0]
    assert relative_difference(zero, something).tolist() == [math.inf]


def test_half_precision_is_measured_in_float32():
    first, second = prompts([[3e4, 3e4]]).to(dtype=torch.float16), prompts([[-3e4, 3e4]]).to(dtype=torch.float16)
    measured = relative_difference(first, second)
    assert measured.dtype == torch.float32
    assert measured.item() == pytest.approx(math.sqrt(2), rel=1e-3)


def test_prompts_that_do_not_pair_are_refused():
    one, two = prompts([[1.0, 0.0]]), prompts([[1.0, 0.0]], [[1.0, 0.0]])
    with pytest.raises(ShapeError, match="1 prompts of width 2 against 2"):
        relative_difference(one, two)
    with pytest.raises(ShapeError, match="width 3"):
        relative_difference(one, prompts([[1.0, 0.0, 0.0]]))
