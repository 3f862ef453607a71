"""Sequences of prompts that lead from one to the next."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from steering.random_prompts import random_prompts, token_norms, tokens_of

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.embeddings.interpolation import InterpolateMethod, interpolate

METHODS: list[InterpolateMethod] = ["linear", "spherical", "cubic"]
methods = st.sampled_from(METHODS)
EVERY_DTYPE = [torch.float16, torch.bfloat16, torch.float32]


def test_known_keys_give_known_steps():
    first, second = tokens_of([2.0, 0.0]), tokens_of([0.0, 4.0])
    line = interpolate(first, second, steps=5).embeddings
    assert line.tokens.tolist() == [[2, 0], [1.5, 1], [1, 2], [0.5, 3], [0, 4]]
    middle = interpolate(first, second, method="spherical", steps=3).embeddings[1]
    assert middle.tokens.flatten().tolist() == pytest.approx([3 / 2**0.5, 3 / 2**0.5], rel=1e-6)
    eased = interpolate(first, second, method="cubic", steps=5).embeddings[1].tokens
    share = 3 * 0.25**2 - 2 * 0.25**3
    assert eased.flatten().tolist() == pytest.approx([2 * (1 - share), 4 * share])


def test_without_endpoints_all_steps_lie_between():
    first, second = tokens_of([0.0, 0.0]), tokens_of([4.0, 8.0])
    inner = interpolate(first, second, steps=3, endpoints=False).embeddings
    assert inner.tokens.tolist() == [[1, 2], [2, 4], [3, 6]]


@given(methods, st.integers(2, 20), st.integers(1, 5), st.integers(1, 5), st.sampled_from(EVERY_DTYPE))
def test_the_ends_are_the_keys_bit_for_bit_at_their_own_lengths(method, steps, length, other_length, dtype):
    first, second = random_prompts([length], 1, dtype=dtype), random_prompts([other_length], 2, dtype=dtype)
    sequence = interpolate(first, second, method=method, steps=steps)
    embeddings = sequence.embeddings
    assert (len(embeddings), embeddings.dtype) == (steps, dtype)
    assert torch.equal(embeddings[0].tokens, first.tokens)
    assert torch.equal(embeddings[-1].tokens, second.tokens)
    longest = max(length, other_length)
    assert embeddings.lengths.tolist() == [length] + [longest] * (steps - 2) + [other_length]
    assert sequence.alignment.after == (longest,)


def test_truncation_cuts_the_ends_too():
    first, second = random_prompts([2], 1), random_prompts([5], 2)
    sequence = interpolate(first, second, steps=4, align="truncate").embeddings
    assert sequence.lengths.tolist() == [2, 2, 2, 2]
    assert torch.equal(sequence[-1].tokens, second.tokens[:2])


@given(methods, st.integers(2, 20), st.booleans(), st.integers(0, 1000), st.sampled_from(EVERY_DTYPE))
def test_between_equal_keys_every_step_is_the_key(method, steps, endpoints, seed, dtype):
    key = random_prompts([3], seed, dtype=dtype)
    for keys in ((key, key), (key, key, key)):
        sequence = interpolate(*keys, method=method, steps=steps, endpoints=endpoints).embeddings
        assert all(torch.equal(sequence[step].tokens, key.tokens) for step in range(steps))


@given(st.integers(0, 1000), st.integers(3, 20))
def test_norms_on_the_arc_go_evenly_from_one_end_to_the_other(seed, steps):
    first, second = random_prompts([4], seed), random_prompts([4], seed + 1)
    sequence = interpolate(first, second, method="spherical", steps=steps).embeddings
    norms = torch.tensor([token_norms(sequence[step]) for step in range(steps)])
    shares = torch.linspace(0, 1, steps).unsqueeze(1)
    torch.testing.assert_close(norms, (1 - shares) * norms[0] + shares * norms[-1], rtol=1e-4, atol=1e-5)


@given(st.integers(0, 1000))
def test_the_arc_is_walked_at_an_even_angle(seed):
    first, second = random_prompts([3], seed), random_prompts([3], seed + 1)
    sequence = interpolate(first, second, method="spherical", steps=6).embeddings
    directions = [torch.nn.functional.normalize(sequence[step].tokens.double(), dim=1) for step in range(6)]
    angles = torch.stack([(a * b).sum(dim=1).clamp(-1, 1).acos() for a, b in pairwise(directions)])
    torch.testing.assert_close(angles, angles.mean(dim=0).expand_as(angles), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("factor", [2.0, 1.0 + 1e-5, -1.0, 0.0])
def test_the_arc_is_the_straight_line_where_tokens_are_parallel_opposite_or_zero(factor: float):
    first = random_prompts([3])
    second = first.to()
    second.tokens[:] = first.tokens * factor
    arc = interpolate(first, second, method="spherical", steps=5).embeddings
    line = interpolate(first, second, method="linear", steps=5).embeddings
    torch.testing.assert_close(arc.tokens, line.tokens)
    assert torch.isfinite(arc.tokens).all()


def test_a_token_without_a_counterpart_fades_in_a_straight_line():
    sequence = interpolate(tokens_of([1.0, 0.0]), tokens_of([0.0, 1.0], [4.0, 0.0]), method="spherical", steps=5)
    assert sequence.embeddings[1].tokens[1].tolist() == [1.0, 0.0]


def test_several_keys_are_passed_in_turn():
    keys = [random_prompts([2], seed) for seed in range(4)]
    for method in METHODS:
        sequence = interpolate(*keys, method=method, steps=7).embeddings
        assert all(torch.equal(sequence[2 * number].tokens, key.tokens) for number, key in enumerate(keys))


def test_the_cubic_passes_inner_keys_smoothly_and_rests_at_the_ends():
    keys = [random_prompts([2], seed) for seed in range(3)]
    fine = [interpolate(*keys, method="cubic", steps=20, endpoints=False).embeddings[step].tokens for step in range(20)]
    speeds = torch.stack([(b - a).norm() for a, b in pairwise([keys[0].tokens, *fine, keys[-1].tokens])])
    assert speeds[0] < 0.3 * speeds.max()
    assert speeds[-1] < 0.3 * speeds.max()
    # a Catmull-Rom curve through points on a line, evenly spaced, is that line away from the resting ends
    line = [tokens_of([float(place), 0.0]) for place in range(5)]
    inner = interpolate(*line, method="cubic", steps=9).embeddings.tokens[2:7, 0]
    assert inner.tolist() == pytest.approx([1.0, 1.5, 2.0, 2.5, 3.0])


def test_a_batch_gives_one_sequence_after_the_other():
    first, second = random_prompts([2, 4], 1), random_prompts([3], 2)
    sequence = interpolate(first, second, method="spherical", steps=3).embeddings
    alone = [interpolate(first[row], second, method="spherical", steps=3).embeddings for row in range(2)]
    assert sequence.lengths.tolist() == [2, 3, 3, 4, 4, 3]
    torch.testing.assert_close(sequence.tokens, torch.cat([each.tokens for each in alone]))


def test_bad_settings_are_refused():
    key = random_prompts([3])
    for steps in (1, 0, -3, 21):
        with pytest.raises(ConfigError, match=rf"steps={steps} is out of range; give 2 to 20"):
            interpolate(key, key, steps=steps)
    with pytest.raises(ConfigError, match="1 embeddings to interpolate"):
        interpolate(key)
    with pytest.raises(ShapeError, match="widths 6 and 8"):
        interpolate(key, random_prompts([3], dim=8))
