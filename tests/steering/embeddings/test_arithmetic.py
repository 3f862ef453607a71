"""Sums, differences and products of embeddings, and how operands of different lengths meet."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steering.random_prompts import random_prompts, tokens_of

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.embeddings.alignment import AlignMethod, align_operands
from latentloom.steering.embeddings.arithmetic import (
    add,
    difference,
    multiply,
    normalize,
    prompt_norms,
    scale,
    weighted_sum,
)
from latentloom.tensors import TextEmbeddings

lengths = st.lists(st.integers(1, 6), min_size=1, max_size=3)
weights = st.floats(-4, 4, allow_nan=False, width=16)
OPERATIONS = [add, weighted_sum, multiply, normalize]


def test_the_example_of_the_document_runs_on_encoded_prompts():
    gothic, regular, beach = (random_prompts([size], seed) for seed, size in enumerate((7, 5, 6)))
    style = difference(gothic, regular)
    gothic_beach = add(beach, style * 0.5)
    expected = beach.padded(7) + 0.5 * (gothic.padded(7) - regular.padded(7))
    torch.testing.assert_close(gothic_beach.embeddings.padded(7), expected)
    torch.testing.assert_close(add(beach, style, weights=(1, 0.5)).embeddings.tokens, gothic_beach.embeddings.tokens)
    torch.testing.assert_close((0.5 * style).embeddings.tokens, scale(style.embeddings, 0.5).tokens)


def test_padding_fills_the_shorter_operand_with_zeros_and_says_so():
    combined = add(tokens_of([1.0, 2.0]), tokens_of([10.0, 20.0], [30.0, 40.0]))
    assert combined.embeddings.tokens.tolist() == [[11.0, 22.0], [30.0, 40.0]]
    alignment = combined.alignment
    assert (alignment.method, alignment.before, alignment.after) == ("pad", ((1,), (2,)), (2,))
    assert alignment.changed
    assert str(alignment) == "1 and 2 tokens padded with zeros to 2"


def test_truncation_cuts_the_longer_operand_and_says_so():
    combined = add(tokens_of([1.0, 2.0]), tokens_of([10.0, 20.0], [30.0, 40.0]), align="truncate")
    assert combined.embeddings.tokens.tolist() == [[11.0, 22.0]]
    assert (combined.alignment.method, combined.alignment.after) == ("truncate", (1,))
    assert str(combined.alignment) == "1 and 2 tokens cut to 1"


def test_rows_of_a_batch_are_aligned_each_on_its_own():
    first, second = random_prompts([2, 5, 3], seed=1), random_prompts([4, 1, 3], seed=2)
    cases: list[tuple[AlignMethod, list[int]]] = [("pad", [4, 5, 3]), ("truncate", [2, 1, 3])]
    for method, expected in cases:
        together = difference(first, second, normalize=True, align=method)
        assert together.embeddings.lengths.tolist() == expected
        assert str(together.alignment).startswith("lengths differ in 2 of 3 prompts")
        for row in range(3):
            alone = difference(first[row], second[row], normalize=True, align=method)
            torch.testing.assert_close(together.embeddings[row].tokens, alone.embeddings.tokens)


def test_one_prompt_serves_every_row_of_the_others():
    batch, one = random_prompts([2, 5], seed=1), random_prompts([3], seed=2)
    combined = add(one, batch)
    assert combined.embeddings.lengths.tolist() == [3, 5]
    assert combined.alignment.before == ((3, 3), (2, 5))
    for row in range(2):
        torch.testing.assert_close(combined.embeddings[row].tokens, add(one, batch[row]).embeddings.tokens)


def test_equal_lengths_leave_nothing_to_align():
    combined = add(random_prompts([4]), random_prompts([4], seed=1))
    assert not combined.alignment.changed
    assert str(combined.alignment) == "lengths agree"


@given(lengths, st.integers(0, 1000))
def test_the_difference_of_a_prompt_to_itself_is_zero(sizes: list[int], seed: int):
    same = random_prompts(sizes, seed)
    for normalized in (False, True):
        result = difference(same, same, normalize=normalized).embeddings
        assert result.lengths.tolist() == sizes
        assert not result.tokens.any()


@given(lengths, st.integers(0, 1000), st.sampled_from([1.0, 0.5, -3.0]))
def test_a_normalised_difference_has_the_scale_for_norm(sizes: list[int], seed: int, factor: float):
    first, second = random_prompts(sizes, seed), random_prompts(sizes[::-1], seed + 1)
    result = difference(first, second, normalize=True, scale=factor).embeddings
    assert prompt_norms(result).tolist() == pytest.approx([abs(factor)] * len(sizes), rel=1e-5)
    plain = difference(first, second, scale=factor).embeddings
    expected = plain.tokens * (abs(factor) / prompt_norms(plain)).repeat_interleave(plain.lengths).unsqueeze(1)
    torch.testing.assert_close(result.tokens, expected)


@given(lengths, lengths, st.integers(0, 1000), weights, weights)
def test_addition_commutes_and_is_linear_in_its_weights(
    sizes: list[int], other_sizes: list[int], seed: int, u: float, v: float
):
    count = min(len(sizes), len(other_sizes))
    first, second = random_prompts(sizes[:count], seed), random_prompts(other_sizes[:count], seed + 1)
    assert torch.equal(add(first, second).embeddings.tokens, add(second, first).embeddings.tokens)
    both = add(first, second, weights=(u + v, 2 * v)).embeddings
    parts = add(add(first, second, weights=(u, 0)), add(first, second, weights=(v, 2 * v))).embeddings
    torch.testing.assert_close(both.tokens, parts.tokens, atol=1e-5, rtol=1e-5)
    longest = [max(pair) for pair in zip(sizes[:count], other_sizes[:count], strict=True)]
    assert both.lengths.tolist() == longest


def test_known_operands_give_known_results():
    first, second = tokens_of([3.0, 0.0]), tokens_of([1.0, 4.0])
    assert add(first, second).embeddings.tokens.tolist() == [[4.0, 4.0]]
    assert add(first, second, weights=(2, -1)).embeddings.tokens.tolist() == [[5.0, -4.0]]
    assert weighted_sum(first, second).embeddings.tokens.tolist() == [[2.0, 2.0]]
    assert weighted_sum(first, second, weights=(3, -1)).embeddings.tokens.tolist() == [[2.0, -1.0]]
    assert multiply(first, second, weights=(2, 0.5)).embeddings.tokens.tolist() == [[3.0, 0.0]]
    assert normalize(first).embeddings.tokens.tolist() == [[1.0, 0.0]]
    assert normalize(first, second, weights=(1, 0)).embeddings.tokens.tolist() == [[1.0, 0.0]]
    assert add(first, weights=[0.5]).embeddings.tokens.tolist() == [[1.5, 0.0]]


def test_normalising_keeps_the_lengths_of_tokens_relative_to_each_other():
    result = normalize(tokens_of([3.0, 0.0], [0.0, 4.0])).embeddings
    assert result.tokens.norm(dim=1).tolist() == pytest.approx([0.6, 0.8])


def test_a_product_is_zero_where_an_operand_has_no_token():
    result = multiply(tokens_of([3.0, 2.0]), tokens_of([1.0, 4.0], [5.0, 5.0])).embeddings
    assert result.tokens.tolist() == [[3.0, 8.0], [0.0, 0.0]]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_four_operands_and_more_work(operation):
    operands = [random_prompts([size], seed=size) for size in (3, 5, 2, 4, 6)]
    for count in (2, 3, 4, 5):
        result = operation(*operands[:count], weights=[0.5] * count)
        assert result.embeddings.lengths.tolist() == [max((3, 5, 2, 4, 6)[:count])]
        assert len(result.alignment.before) == count


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_of_the_operands_comes_back(dtype: torch.dtype):
    first, second = random_prompts([3], 0, dtype=dtype), random_prompts([4], 1, dtype=dtype)
    for operation in (difference, *OPERATIONS):
        assert operation(first, second).embeddings.dtype == dtype
    assert scale(first, 2.0).dtype == dtype
    exact = first.tokens.double() + 0.1 * second.tokens.double()[:3]
    # one rounding at the end, none on the way
    result = add(first, second, weights=(1, 0.1)).embeddings.tokens[:3]
    assert (result.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_operands_of_two_dtypes_meet_in_one_that_holds_both():
    half, brain = random_prompts([3], dtype=torch.float16), random_prompts([3], dtype=torch.bfloat16)
    assert add(half, brain).embeddings.dtype == torch.float32


def test_values_near_the_end_of_half_precision_are_normalised():
    large = TextEmbeddings(torch.full((40, 8), 6e4, dtype=torch.float16), torch.tensor([40]))
    assert prompt_norms(normalize(large).embeddings).item() == pytest.approx(1, rel=1e-3)


def test_bad_operands_are_refused_in_one_line():
    good, nan = random_prompts([3]), tokens_of([float("nan"), 1.0], [1.0, 1.0])
    none = TextEmbeddings(torch.zeros(0, 6), torch.tensor([0]))
    large = TextEmbeddings(torch.full((1, 6), 6e4, dtype=torch.float16), torch.tensor([1]))
    cases = [
        (lambda: add(nan, nan), ConfigError, "operand 1 holds NaN or infinite values in 1 of 2 tokens"),
        (lambda: add(good, tokens_of([float("inf")] * 6)), ConfigError, "operand 2 holds NaN or infinite"),
        (lambda: add(good, none), ShapeError, "operand 2 holds no tokens"),
        (lambda: add(good, random_prompts([3], dim=8)), ShapeError, "widths 6 and 8"),
        (lambda: add(random_prompts([1, 1]), random_prompts([1, 1, 1]), good), ShapeError, "2, 3 and 1 prompts"),
        (lambda: add(good), ConfigError, "1 operands without weights; give at least 2"),
        (lambda: add(good, good, weights=[1]), ConfigError, "1 weights for 2 operands"),
        (lambda: add(good, good, weights=[1, float("nan")]), ConfigError, "give finite numbers"),
        (lambda: weighted_sum(good, good, weights=[0, 0]), ConfigError, "are all zero"),
        (lambda: difference(good, good, scale=float("inf")), ConfigError, "give finite numbers"),
        (lambda: normalize(), ConfigError, "give at least 1"),
        (lambda: add(large, large), ConfigError, "the result reaches 1.2e.05 and float16 ends at 6.55e.04"),
        (lambda: scale(large, 2.0), ConfigError, "float16 ends at"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_cutting_to_nothing_and_an_unknown_method_are_refused():
    gap = TextEmbeddings(torch.ones(2, 6), torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="leaves no token"):
        align_operands([gap, gap[[1, 0]]], "truncate")
    assert align_operands([gap, random_prompts([1, 1])]).alignment.after == (1, 2)
    unknown: Any = "stretch"
    with pytest.raises((ConfigError, TypeError)):
        align_operands([gap], unknown)
