"""The loss by hand: what each term measures, who counts as a wrong answer, and gradients where training starts."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.config import TrainConfig
from latentloom.delta.loss import LossTerms, loss_terms
from latentloom.delta.pooled_delta import PooledDelta

DIFFERENT = torch.eye(2, dtype=torch.bool)
BASE = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
SHIFT = PooledDelta(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), torch.tensor([0.5, 1.0]))


def terms(rewritten: list[list[float]], logit: float = 0.0, same: torch.Tensor = DIFFERENT) -> LossTerms:
    logits = torch.full((2,), logit)
    return loss_terms(BASE, torch.tensor(rewritten), SHIFT, logits, -logits, same, tau=0.5)


def test_every_term_by_hand():
    # gates of one half: adjusted prompts (1, 1) / sqrt 2 and (0, 1); targets (0, 1) and (1, 0)
    found = terms([[0.0, 3.0], [5.0, 0.0]])
    near = math.sqrt(0.5)
    assert found.cosine.item() == pytest.approx(1 - near / 2)
    assert found.contrast.item() == pytest.approx((math.log(2) + math.log(math.e**2 + 1)) / 2)
    assert found.anchor.item() == pytest.approx(1 - (near + 1) / 2)
    assert found.magnitude.item() == pytest.approx((0.25 * 0.5 + 0.25 * 1.0) / 2)
    assert found.gate.item() == pytest.approx(math.log(2))


def test_the_gate_term_opens_on_base_prompts_and_closes_on_rewrites():
    assert terms([[0.0, 3.0], [5.0, 0.0]], logit=3.0).gate.item() == pytest.approx(math.log1p(math.exp(-3)))
    assert terms([[0.0, 3.0], [5.0, 0.0]], logit=-3.0).gate.item() == pytest.approx(math.log1p(math.exp(3)))


def test_the_total_weighs_the_terms():
    found = terms([[0.0, 3.0], [5.0, 0.0]])
    config = TrainConfig(w_nce=2, w_anchor=3, w_l2=5, w_gate=7)
    expected = sum(
        weight * part for weight, part in zip([1.0, 2.0, 3.0, 5.0, 7.0], found.detached().tolist(), strict=True)
    )
    assert found.total(config).item() == pytest.approx(expected)
    assert found.detached().tolist()[0] == found.cosine.item()


def test_a_pair_with_the_same_rewrite_is_no_wrong_answer():
    rewrites = [[0.0, 3.0], [0.0, 3.0]]
    assert terms(rewrites).contrast.item() == pytest.approx(math.log(2))
    assert terms(rewrites, same=torch.ones(2, 2, dtype=torch.bool)).contrast.item() == 0
    assert terms(rewrites, same=torch.ones(2, 2, dtype=torch.bool)).cosine == terms(rewrites).cosine


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0.1, 10))
def test_a_perfect_adjustment_has_a_cosine_loss_of_0_at_any_length(seed, num, length):
    generator = torch.Generator().manual_seed(seed)
    base, rewritten = torch.randn(2, num, 8, generator=generator)
    logits = torch.randn(num, generator=generator)
    mean = (length * rewritten - base) / logits.sigmoid().unsqueeze(1)
    same = torch.eye(num, dtype=torch.bool)
    found = loss_terms(base, rewritten, PooledDelta(mean, torch.zeros(num)), logits, logits, same, 0.05)
    assert found.cosine.item() == pytest.approx(0, abs=1e-5)


@given(st.integers(0, 2**31), st.integers(1, 6))
def test_gradients_are_finite_where_training_starts(seed, num):
    base = torch.randn(num, 8, generator=torch.Generator().manual_seed(seed))
    base[0] = 0  # a prompt without tokens
    mean, square, opened, closed = (
        torch.zeros(shape, requires_grad=True) for shape in [(num, 8), (num,), (num,), (num,)]
    )
    same = torch.eye(num, dtype=torch.bool)
    # the rewrites are the prompts themselves: cosines of exactly 1
    total = loss_terms(base, base, PooledDelta(mean, square), opened, closed, same, 0.05).total(TrainConfig())
    total.backward()
    assert math.isfinite(total.item())
    for leaf in (mean, square, opened, closed):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
