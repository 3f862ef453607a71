"""Rows after the model's projection: boosted, or put at a stated difference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steering.random_prompts import random_prompts, token_norms, tokens_of

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.embeddings.projected import InjectMode, boost_projection, inject_direct
from latentloom.tensors import TextEmbeddings

MODES: list[InjectMode] = ["additive", "replace", "blend"]


def near(lengths: list[int], seed: int, dtype: torch.dtype = torch.float32) -> list[TextEmbeddings]:
    """Rows as a projection leaves them: mostly common to both prompts."""
    common, own, other = (random_prompts(lengths, 3 * seed + part, dim=16).tokens for part in range(3))
    sides = (common + 0.2 * part for part in (own, other))
    return [TextEmbeddings(tokens.to(dtype), torch.tensor(lengths)) for tokens in sides]


@given(seed=st.integers(0, 1000), factor=st.floats(1, 50))
def test_a_boost_keeps_norms_and_makes_more_different(seed: int, factor: float):
    base, other = near([5, 3], seed)
    boosted = boost_projection(base, other, factor)
    assert token_norms(boosted) == pytest.approx(token_norms(other), rel=1e-5)
    assert (relative_difference(base, boosted) >= relative_difference(base, other) - 1e-5).all()


def test_a_boost_of_one_is_the_other_prompt_bit_for_bit():
    for dtype in (torch.float32, torch.bfloat16):
        base, other = near([5, 3], seed=1, dtype=dtype)
        assert torch.equal(boost_projection(base, other, 1).tokens, other.tokens)
        assert torch.equal(boost_projection(base, other, 1, keep_norm=False).tokens, other.tokens)


def test_a_boost_without_norms_kept_is_the_plain_formula():
    base, other = near([5], seed=2)
    boosted = boost_projection(base, other, 7.5, keep_norm=False)
    torch.testing.assert_close(boosted.tokens, base.tokens + 7.5 * (other.tokens - base.tokens), rtol=1e-4, atol=1e-5)
    direction = boosted.tokens / boosted.tokens.norm(dim=1, keepdim=True)
    kept = boost_projection(base, other, 7.5).tokens
    torch.testing.assert_close(kept, direction * other.tokens.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(("base_length", "other_length"), [(2, 5), (5, 2)])
def test_the_rows_are_those_of_the_other_prompt(base_length: int, other_length: int):
    base, other = random_prompts([base_length], 1), random_prompts([other_length], 2)
    boosted = boost_projection(base, other, 10)
    assert boosted.lengths.tolist() == [other_length]
    # where base has no row there is nothing to move away from
    torch.testing.assert_close(boosted.tokens[base_length:], other.tokens[base_length:])
    for mode in MODES:
        target = 0.99 * relative_difference(base, other).item()
        assert inject_direct(base, other, mode, target).lengths.tolist() == [other_length]


@pytest.mark.parametrize("mode", MODES)
@given(seed=st.integers(0, 1000), share=st.floats(0.2, 0.95), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_difference_below_that_of_the_other_prompt_is_met(mode: InjectMode, seed: int, share: float, dtype):
    base, other = near([6, 4], seed, dtype)
    if mode == "replace":  # keeps the norms of other, and so the difference that they alone make
        share = 0.9 + share / 10
    target = share * relative_difference(base, other).min().item()
    rows = inject_direct(base, other, mode, target)
    assert (rows.dtype, rows.lengths.tolist()) == (dtype, [6, 4])
    tolerance = 1e-3 if dtype == torch.float32 else 6e-3
    assert relative_difference(base, rows).tolist() == pytest.approx([target, target], abs=tolerance)


@pytest.mark.parametrize(("mode", "target"), [("additive", 0.9), ("additive", 10.0), ("replace", 0.9)])
def test_a_difference_beyond_that_of_the_other_prompt_is_met(mode: InjectMode, target: float):
    base, other = near([6, 4], seed=3)
    rows = inject_direct(base, other, mode, target)
    assert relative_difference(base, rows).tolist() == pytest.approx([target, target], rel=1e-4)
    if mode == "replace":
        assert token_norms(rows) == pytest.approx(token_norms(other), rel=1e-5)


def test_the_target_counts_the_rows_that_only_one_prompt_has():
    for lengths in ((7, 4), (4, 7)):
        whole = near([7], seed=4)
        base, other = (TextEmbeddings.from_list([side.tokens[:n]]) for side, n in zip(whole, lengths, strict=True))
        target = 1.2 * relative_difference(base, other).item()
        for mode in ("additive", "replace"):
            rows = inject_direct(base, other, mode, target)
            assert relative_difference(base, rows).item() == pytest.approx(target, rel=1e-4)


def test_the_modes_are_what_they_say():
    base, other = tokens_of([1.0, 0.0]), tokens_of([0.0, 2.0])
    added = inject_direct(base, other, "additive", 1.0).tokens[0]
    assert (added[0] + added[1] / 2).item() == pytest.approx(1, abs=1e-5)  # on the line from base to other
    replaced = inject_direct(base, other, "replace", 1.0).tokens[0]
    assert replaced.norm().item() == pytest.approx(2, rel=1e-5)
    blended = inject_direct(base, other, "blend", 1.0).tokens[0]
    share = math.atan2(blended[1].item(), blended[0].item()) / (math.pi / 2)
    assert blended.norm().item() == pytest.approx(1 + share, rel=1e-5)


def test_blending_ends_at_the_other_prompt():
    base, other = near([6], seed=5)
    all_of_it = relative_difference(base, other).item()
    torch.testing.assert_close(inject_direct(base, other, "blend", all_of_it).tokens, other.tokens, atol=1e-3, rtol=0)
    with pytest.raises(ConfigError, match=f"blend to a relative difference of .*cannot be more than {all_of_it:.4g}"):
        inject_direct(base, other, "blend", 1.1 * all_of_it)


def test_bad_settings_are_refused():
    base, other = near([4], seed=6)
    for factor in (0.5, 50.5, -1, math.nan):
        with pytest.raises(ConfigError, match="is out of range; give 1 to 50"):
            boost_projection(base, other, factor)
    for target in (0.0, -0.5, math.nan):
        with pytest.raises(ConfigError, match="give a relative difference above 0"):
            inject_direct(base, other, "additive", target)
    with pytest.raises(ConfigError, match="it cannot be less than"):
        inject_direct(base, TextEmbeddings.from_list([other.tokens[:1]]), "additive", 0.01)
    with pytest.raises(ShapeError, match="widths 16 and 6"):
        boost_projection(base, random_prompts([4]), 2)
