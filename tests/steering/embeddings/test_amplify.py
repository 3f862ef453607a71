"""Amplifiers: two prompts as far apart as asked for, every token at its norm."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from steering.random_prompts import random_prompts, token_norms, tokens_of

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.embeddings.amplify import AmplifyMethod, amplify
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.tensors import TextEmbeddings

METHODS: list[AmplifyMethod] = ["push_apart", "maximize_diff", "orthogonalize"]


def alike(lengths: list[int], seed: int, share: float = 0.5, dtype: torch.dtype = torch.float32, dim: int = 16):
    """Two batches of prompts with much in common, of the same lengths."""
    common, own, other = (random_prompts(lengths, 3 * seed + part, dim).tokens for part in range(3))
    sides = (common + share * part for part in (own, other))
    return [TextEmbeddings(tokens.to(dtype), torch.tensor(lengths)) for tokens in sides]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(4, 9), min_size=1, max_size=3),
    seed=st.integers(0, 10**4),
    target=st.floats(0.8, 1.1),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_the_target_is_reached_at_unchanged_norms_and_lengths(method, lengths, seed, target, dtype):
    first, second = alike(lengths, seed, dtype=dtype)
    done = amplify(first, second, method, target)
    expected = done.before.clamp_min(target)
    torch.testing.assert_close(done.reached, expected, atol=1e-3 if dtype == torch.float32 else 6e-3, rtol=0)
    torch.testing.assert_close(done.reached, relative_difference(done.first, done.second))
    for given_side, side in ((first, done.first), (second, done.second)):
        assert (side.dtype, side.lengths.tolist()) == (dtype, lengths)
        assert token_norms(side) == pytest.approx(token_norms(given_side), rel=1e-2 if dtype != torch.float32 else 1e-5)
    if method != "push_apart":
        assert torch.equal(done.second.tokens, second.tokens)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**4), first_length=st.integers(3, 9), second_length=st.integers(3, 9))
def test_prompts_of_two_lengths_keep_them(seed: int, first_length: int, second_length: int):
    first, second = alike([9], seed)
    first, second = (
        TextEmbeddings.from_list([each.tokens[:length]])
        for each, length in ((first, first_length), (second, second_length))
    )
    target = relative_difference(first, second).item() + 0.05
    done = amplify(first, second, "push_apart", target)
    assert done.reached.item() == pytest.approx(target, abs=1e-3)
    assert (done.first.lengths.tolist(), done.second.lengths.tolist()) == ([first_length], [second_length])
    assert done.alignment.before == ((first_length,), (second_length,))
    # what has no counterpart stays
    shorter = min(first_length, second_length)
    torch.testing.assert_close(done.first.tokens[shorter:], first.tokens[shorter:])
    torch.testing.assert_close(done.second.tokens[shorter:], second.tokens[shorter:])


def test_pushing_apart_moves_both_by_the_same_angle():
    first, second = tokens_of([1.0, 0.2]), tokens_of([1.0, -0.2])
    done = amplify(first, second, "push_apart", 1.0)
    assert done.first.tokens[0, 0].item() == pytest.approx(done.second.tokens[0, 0].item(), rel=1e-6)
    assert done.first.tokens[0, 1].item() == pytest.approx(-done.second.tokens[0, 1].item(), rel=1e-6)
    # two vectors of one norm at an angle of 60 degrees differ by that norm
    assert done.first.tokens[0, 1].item() == pytest.approx(0.5 * math.sqrt(1.04), rel=1e-4)


def test_maximizing_moves_the_first_along_the_difference_and_leaves_the_second():
    first, second = tokens_of([1.0, 0.2, 0.0]), tokens_of([1.0, 0.0, 0.0])
    done = amplify(first, second, "maximize_diff", 0.8)
    assert torch.equal(done.second.tokens, second.tokens)
    assert done.first.tokens[0, 2] == 0
    along = done.first.tokens[0] / done.first.tokens[0, 1] * 0.2  # a multiple of a + s (a - b) has 0.2 (1 + s) here
    assert along[0] < 1


def test_orthogonalizing_all_the_way_leaves_right_angles():
    first, second = alike([5], seed=1)
    cosine = torch.nn.functional.cosine_similarity
    assert (cosine(first.tokens, second.tokens).abs() > 0.1).any()
    full = math.sqrt(first.tokens.norm() ** 2 + second.tokens.norm() ** 2)
    full /= math.sqrt(first.tokens.norm() * second.tokens.norm())
    done = amplify(first, second, "orthogonalize", full)
    assert done.strength.item() == pytest.approx(1, abs=1e-4)
    assert cosine(done.first.tokens, second.tokens).abs().max() < 1e-3


def test_a_pair_that_is_different_enough_stays_as_it_is():
    near, far = alike([4], seed=2, share=0.2), alike([4], seed=3, share=5.0)
    first, second = (TextEmbeddings.cat(list(side)) for side in zip(near, far, strict=True))
    done = amplify(first, second, "maximize_diff", 0.9)
    assert done.reached[0].item() == pytest.approx(0.9, abs=1e-3)
    assert done.strength[1] == 0
    assert torch.equal(done.first[1].tokens, first[1].tokens)
    assert done.reached[1] == done.before[1] > 0.9


def test_one_prompt_serves_every_row():
    first, second = alike([4, 6], seed=4)
    done = amplify(first, second[0], "push_apart", 1.5)
    assert (len(done.first), len(done.second)) == (2, 2)
    alone = amplify(first[1], second[0], "push_apart", 1.5)
    torch.testing.assert_close(done.second[1].tokens, alone.second.tokens)


def test_a_target_out_of_reach_is_refused_with_the_largest_that_is():
    first, second = tokens_of([2.0, 0.2]), tokens_of([1.0, 0.0])
    largest = 3 / math.sqrt(2)  # opposite tokens of norms 2 and 1, but for the 0.2
    with pytest.raises(
        ConfigError, match=r"push_apart to a relative difference of 60: it cannot be more than 2\.1"
    ) as r:
        amplify(first, second, "push_apart", 60)
    said = float(str(r.value).split("more than ")[1].split(";")[0])
    assert said == pytest.approx((2.01 + 1) / math.sqrt(2.01), rel=1e-3)
    assert amplify(first, second, "push_apart", 0.999 * largest).reached.item() == pytest.approx(
        0.999 * largest, abs=1e-3
    )
    with pytest.raises(ConfigError, match=r"orthogonalize to a relative difference of 1\.9: it cannot"):
        amplify(first, second, "orthogonalize", 1.9)


def test_a_batch_says_which_prompt_cannot_reach_the_target():
    first, second = alike([4, 4], seed=5)
    equal = TextEmbeddings.cat([first[0], second[1]])
    with pytest.raises(ConfigError, match="of prompt 2 of 2: the two do not differ, so there is no direction"):
        amplify(equal, second, "maximize_diff", 0.9)


def test_tokens_on_one_line_jump_over_a_target():
    first, second = tokens_of([1.0, 1.0]), tokens_of([2.0, 2.0])
    with pytest.raises(ConfigError, match=r"nearest are 0.7071 or 2.121, as their tokens are parallel"):
        amplify(first, second, "maximize_diff", 1.5)


def test_bad_settings_and_operands_are_refused():
    first, second = alike([4], seed=6)
    for target in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="give a relative difference above 0"):
            amplify(first, second, "push_apart", target)
    with pytest.raises(ShapeError, match="widths 16 and 6"):
        amplify(first, random_prompts([4]), "push_apart", 0.5)
    first.tokens[0, 0] = math.nan
    with pytest.raises(ConfigError, match="operand 1 holds NaN"):
        amplify(first, second, "push_apart", 0.5)
