"""Closed-form baselines against their definitions, and against maps that they must find."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta import baselines
from latentloom.delta.baselines import (
    RidgeFit,
    fit_mean,
    fit_ridge,
    pooled_targets,
    ridge_adapter,
    start_from_fit,
    token_centre,
)
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import pool
from latentloom.tensors import TextEmbeddings

DIM = 24
seeds = st.integers(0, 2**31)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pooled_features(batch: TextEmbeddings, centre: torch.Tensor) -> torch.Tensor:
    normed = torch.nn.functional.layer_norm(batch.tokens, (batch.dim,)) - centre
    return pool(TextEmbeddings(normed, batch.lengths))


def some_fit(seed: int, num: int = 12) -> RidgeFit:
    """Of random prompts to random rewrites."""
    lengths = torch.randint(1, 6, (2, num), generator=torch.Generator().manual_seed(seed))
    sides = [
        PromptConstants.of(TextEmbeddings(randn(seed + row, int(side.sum()), DIM), side))
        for row, side in enumerate(lengths)
    ]
    return fit_ridge(sides[0], randn(seed + 2, num, DIM), sides[1], randn(seed + 3, num, DIM))


@given(seeds, st.integers(1, 9))
def test_targets_lead_to_the_direction_of_the_rewrite_at_the_length_of_the_base(seed, num):
    base, rewritten = randn(seed, 2, num, DIM)
    reached = base + pooled_targets(base, 7 * rewritten)
    torch.testing.assert_close(reached.norm(dim=1), base.norm(dim=1), rtol=1e-5, atol=0)
    cosine = torch.nn.functional.cosine_similarity(reached, rewritten)
    torch.testing.assert_close(cosine, torch.ones(num), rtol=0, atol=1e-5)


@given(seeds, st.integers(1, 9))
def test_the_mean_delta_is_the_mean_of_what_is_to_be_added(make_prompts, seed, num):
    base, rewritten = randn(seed, 2, num, DIM)
    shift = np.zeros(DIM)
    for one, other in zip(base.double().numpy(), rewritten.double().numpy(), strict=True):
        shift += (other * np.linalg.norm(one) / np.linalg.norm(other) - one) / num
    batch = make_prompts([3, 0, 2], seed=seed)
    moved = fit_mean(base, rewritten)(batch).tokens - batch.tokens
    torch.testing.assert_close(moved, torch.from_numpy(shift).float().expand(5, -1), rtol=1e-4, atol=1e-5)


@given(st.integers(0, 100), st.sampled_from([1e-3, 0.1, 10.0]), st.sampled_from([10, 60]))
def test_ridge_is_the_closed_form_of_its_penalty(make_prompts, seed, relative, num):
    batch, rewritten = make_prompts([1 + row % 4 for row in range(num)], seed=seed), randn(seed, num, DIM)
    base = PromptConstants.of(batch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "_PENALTIES", (relative,))
        fit = fit_ridge(base, rewritten, base, rewritten)
    assert fit.penalty == relative
    features = pooled_features(batch, token_centre(base)).double().numpy()
    targets = pooled_targets(base.pooled, rewritten).double().numpy()
    mean, bias = features.mean(axis=0), targets.mean(axis=0)
    centred = features - mean
    penalty = relative * (np.linalg.svd(centred, compute_uv=False) ** 2).mean()
    matrix = np.linalg.solve(centred.T @ centred + penalty * np.eye(DIM), centred.T @ (targets - bias))
    found = (fit.left @ fit.right).double().numpy()
    assert np.linalg.norm(found - matrix) <= 1e-3 * np.linalg.norm(matrix)
    np.testing.assert_allclose(fit.bias.double().numpy(), bias - mean @ matrix, atol=1e-3 * np.abs(targets).max())


@given(st.integers(0, 100))
def test_the_penalty_is_the_one_with_the_best_validation_cosine(make_prompts, seed):
    lengths = [1 + row % 4 for row in range(40)]
    base, val_base = (PromptConstants.of(make_prompts(lengths, seed=seed + row)) for row in range(2))
    rewritten, val_rewritten = base.pooled + randn(seed, 40, DIM), val_base.pooled + randn(seed + 1, 40, DIM)
    chosen = fit_ridge(base, rewritten, val_base, val_rewritten)

    def cosine(fit: RidgeFit) -> float:
        features = pooled_features(val_base.embeddings, fit.centre)
        adjusted = val_base.pooled + features @ fit.left @ fit.right + fit.bias
        return torch.nn.functional.cosine_similarity(adjusted, val_rewritten).mean().item()

    found = {}
    for penalty in baselines._PENALTIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(baselines, "_PENALTIES", (penalty,))
            found[penalty] = cosine(fit_ridge(base, rewritten, val_base, val_rewritten))
    assert found[chosen.penalty] == pytest.approx(max(found.values()), abs=1e-6)


def test_ridge_recovers_a_planted_map():
    # tokens whose layer norm is themselves, and a rotation: targets are exact and linear in the features
    lengths = torch.tensor([1 + row % 5 for row in range(200)])
    tokens = torch.nn.functional.layer_norm(randn(0, int(lengths.sum()), DIM), (DIM,))
    batch = TextEmbeddings(tokens, lengths)
    rotation = torch.linalg.qr(randn(1, DIM, DIM)).Q
    base, rewritten = PromptConstants.of(batch[:150]), pool(batch[:150]) @ rotation
    unseen = batch[150:]
    fit = fit_ridge(base, rewritten, PromptConstants.of(unseen), pool(unseen) @ rotation)
    adjusted = pool(ridge_adapter(fit)(unseen))
    assert fit.penalty == min(baselines._PENALTIES)
    assert (adjusted - pool(unseen) @ rotation).norm() <= 1e-3 * adjusted.norm()


@given(st.integers(0, 100), st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_the_ridge_adapter_per_token_is_the_regression_on_pooled_prompts(make_prompts, seed, lengths):
    fit, batch = some_fit(seed), make_prompts(lengths, seed=seed)
    predicted = pool(batch) + pooled_features(batch, fit.centre) @ fit.left @ fit.right + fit.bias
    found = pool(ridge_adapter(fit)(batch))
    assert (found - predicted).norm() <= 1e-5 * predicted.norm()


@given(st.integers(0, 100), st.integers(1, DIM + 8))
def test_factors_are_the_best_approximation_of_their_rank(seed, rank):
    fit = some_fit(seed)
    down, up = fit.factors(rank)
    assert (down.shape, up.shape) == ((rank, DIM), (DIM, rank))
    whole = (fit.left @ fit.right).double()
    outer, values, inner = torch.linalg.svd(whole)
    kept = min(rank, DIM)
    best = outer[:, :kept] * values[:kept] @ inner[:kept]
    found = (up @ down).T.double()
    assert (found - best).norm() <= 1e-4 * whole.norm()
    num_pairs = len(fit.right)
    assert not down[num_pairs:].any()
    assert not up[:, num_pairs:].any()


def test_an_adapter_that_starts_from_a_fit_keeps_its_own_settings(make_adapter):
    fit, adapter = some_fit(0), make_adapter(rank=3, cap=0.22)
    start_from_fit(adapter, fit)
    assert (adapter.config.rank, adapter.config.cap) == (3, 0.22)
    down, up = fit.factors(3)
    expected = [down, up, fit.bias, fit.centre]
    found = [adapter.down, adapter.up, adapter.bias, adapter.centre]
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@given(st.integers(0, 100), st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any))
def test_the_centre_is_the_mean_of_all_tokens_after_layer_norm(make_prompts, seed, lengths):
    batch = make_prompts(lengths, seed=seed)
    rows = [(token - token.mean()) / (token.var(correction=0) + 1e-5).sqrt() for token in batch.tokens]
    torch.testing.assert_close(token_centre(PromptConstants.of(batch)), torch.stack(rows).mean(0), rtol=1e-4, atol=1e-5)
