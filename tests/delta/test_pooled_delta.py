"""Fused, packed and padded pooling are one function with one gradient; fused makes no [tokens, channels] array."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentloom.delta.model import EmbeddingDelta, gate_features
from latentloom.delta.pooled_delta import PooledDelta, PromptConstants, pooled_delta
from latentloom.delta.pooling import pool
from latentloom.tensors import TextEmbeddings

DIM = 24
seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 7), min_size=1, max_size=5)
shapes = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 9),
        "cap": st.sampled_from([None, 0.05, 0.22, 1.0, 5.0]),
        "cap_mode": st.sampled_from(["relative", "absolute"]),
        "orthogonal": st.booleans(),
    }
)


def with_gradients(
    adapter: EmbeddingDelta, prompts: PromptConstants, seed: int, *how: Any
) -> tuple[PooledDelta, list[torch.Tensor]]:
    """The pooled corrections, and the gradients of a random function of both of their parts."""
    parameters = [adapter.down, adapter.up, adapter.bias]
    for parameter in parameters:
        parameter.requires_grad_(True)
    pooled = pooled_delta(adapter, prompts, *how)
    generator = torch.Generator().manual_seed(seed)
    weighted = [part * torch.randn(part.shape, generator=generator) for part in pooled]
    total = torch.stack([part.sum() for part in weighted]).sum()
    return pooled, list(torch.autograd.grad(total, parameters))


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).norm() <= 1e-5 * expected.norm() + 1e-7


@given(lengths, shapes, seeds, st.sampled_from([None, 7, 11]))
def test_the_three_methods_agree_in_values_and_gradients(make_prompts, make_adapter, lengths, shape, seed, pad_to):
    adapter = make_adapter(seed, size=0.3, **shape)
    prompts = PromptConstants.of(make_prompts(lengths, seed=seed))
    packed, packed_gradients = with_gradients(adapter, prompts, seed, "packed")
    for how in (["fused"], ["padded", pad_to]):
        found, gradients = with_gradients(adapter, prompts, seed, *how)
        for one, other in zip([*found, *gradients], [*packed, *packed_gradients], strict=True):
            assert_near(one, other)


@given(lengths, shapes, seeds)
def test_the_mean_is_what_the_adapter_adds_to_the_pooled_prompt(make_prompts, make_adapter, lengths, shape, seed):
    batch, adapter = make_prompts(lengths, seed=seed), make_adapter(seed, size=0.3, gated=False, **shape)
    found = pooled_delta(adapter, PromptConstants.of(batch))
    torch.testing.assert_close(pool(batch) + found.mean, pool(adapter(batch)), rtol=1e-5, atol=1e-5)


def test_squares_are_relative_to_the_tokens(make_adapter):
    adapter = make_adapter(size=0.0, cap=None, orthogonal=False)
    adapter.bias[0] = 3.0
    tokens = torch.zeros(3, DIM)
    tokens[0, 1], tokens[1, 1], tokens[2, 1] = 1.0, 2.0, 4.0
    prompts = PromptConstants.of(TextEmbeddings(tokens, torch.tensor([2, 0, 1])))
    for method in ("fused", "packed", "padded"):
        found = pooled_delta(adapter, prompts, method)
        assert found.square.tolist() == pytest.approx([(9 + 9 / 4) / 2, 0, 9 / 16], rel=1e-5)
        assert found.mean[:, 0].tolist() == pytest.approx([3, 0, 3], rel=1e-5)


@pytest.mark.parametrize("method", ["fused", "packed", "padded"])
def test_gradients_of_an_untrained_adapter_are_finite_with_tokens_of_zeros_too(make_prompts, make_adapter, method):
    batch = make_prompts([3, 0, 2])
    batch.tokens[1] = 0
    for cap in (None, 0.22):
        adapter = make_adapter(size=0.0, cap=cap)
        adapter.down.normal_()
        _, gradients = with_gradients(adapter, PromptConstants.of(batch), 0, method)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)


@given(lengths, seeds, st.data())
def test_constants_of_a_batch_are_those_of_its_prompts(make_prompts, lengths, seed, data):
    prompts = make_prompts(lengths, seed=seed)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6)), dtype=torch.long)
    found, expected = PromptConstants.of(prompts).batch(rows), PromptConstants.of(prompts[rows])
    assert torch.equal(found.embeddings.tokens, expected.embeddings.tokens)
    assert torch.equal(found.embeddings.lengths, expected.embeddings.lengths)
    for name in ("means", "rstds", "squares", "pooled", "features"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


@given(lengths, seeds)
def test_constants_by_their_definitions(make_prompts, lengths, seed):
    prompts = make_prompts(lengths, seed=seed, dtype=torch.bfloat16)
    found, tokens = PromptConstants.of(prompts), prompts.tokens.float()
    assert found.embeddings.dtype == torch.float32
    normed = (tokens - found.means.unsqueeze(1)) * found.rstds.unsqueeze(1)
    torch.testing.assert_close(normed, torch.nn.functional.layer_norm(tokens, (DIM,)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.squares, tokens.norm(dim=1).square(), rtol=1e-5, atol=0)
    assert torch.equal(found.pooled, pool(prompts))
    assert torch.equal(found.features, gate_features(prompts))


@given(lengths, seeds)
def test_a_weighted_mean_and_its_gradient_by_their_definition(make_prompts, lengths, seed):
    prompts = PromptConstants.of(make_prompts(lengths, seed=seed))
    weights = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)).requires_grad_()
    plain = pool(TextEmbeddings(weights.unsqueeze(1) * prompts.embeddings.tokens, prompts.embeddings.lengths))
    fused = prompts.weighted_mean(weights)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((mean**2).sum(), weights)[0] for mean in (fused, plain)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


class LargestFloat(TorchDispatchMode):
    """Records the most numbers that any operation gives back in one new floating-point tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.data_ptr() not in given:
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("cap", [None, 0.22])
def test_fused_makes_no_array_of_tokens_by_channels_forward_or_backward(make_prompts, make_adapter, cap, orthogonal):
    dim, lengths = 256, [40, 0, 200, 60]
    adapter = make_adapter(d_model=dim, rank=4, cap=cap, orthogonal=orthogonal)
    prompts = PromptConstants.of(make_prompts(lengths, dim=dim))
    found = {}
    for method in ("fused", "packed"):
        with LargestFloat() as largest:
            with_gradients(adapter, prompts, 0, method)
        found[method] = largest.numel
    assert found["packed"] >= sum(lengths) * dim  # so the count sees such an array
    assert found["fused"] <= sum(lengths) * (2 * 4 + 1)


@pytest.mark.parametrize("method", ["fused", "packed", "padded"])
def test_a_token_of_zeros_does_not_count_towards_the_magnitude(method, make_adapter):
    tokens = torch.cat([torch.zeros(1, 24), torch.randn(1, 24, generator=torch.Generator().manual_seed(3))])
    prompts = PromptConstants.of(TextEmbeddings(tokens, torch.tensor([2])))
    square = pooled_delta(make_adapter(cap=None), prompts, method).square
    alone = PromptConstants.of(TextEmbeddings(tokens[1:], torch.tensor([1])))
    assert torch.allclose(square, pooled_delta(make_adapter(cap=None), alone, method).square / 2, rtol=1e-4)
