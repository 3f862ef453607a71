"""Cross-entropy by chunks of rows is torch's own: its values, its gradients, and what it counts as right."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentloom.bridge import loss as module
from latentloom.bridge.loss import linear_cross_entropy

WIDTH = 6


def case(num: int, words: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States [N, H], an output layer [V, H], targets [N], and what each row's loss is multiplied by, of both signs."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(rows, WIDTH, generator=generator) for rows in (num, words))
    return hidden, weight, torch.randint(words, (num,), generator=generator), torch.randn(num, generator=generator)


@contextmanager
def chunks_of(rows: int) -> Iterator[None]:
    """The logits of as many rows at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_ROWS", rows)
        yield


def gradients(loss: Tensor, upstream: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((loss * upstream).sum(), leaves)


@given(num=st.integers(1, 23), words=st.integers(1, 17), rows=st.integers(1, 24), trains_weight=st.booleans())
def test_values_and_gradients_are_those_of_torch_whatever_the_chunks(
    num: int, words: int, rows: int, trains_weight: bool
):
    hidden, weight, targets, upstream = case(num, words, seed=num * 31 + words)
    leaves = [hidden.requires_grad_(), *([weight.requires_grad_()] if trains_weight else [])]
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, reduction="none")
    with chunks_of(rows):
        found, correct = linear_cross_entropy(hidden, weight, targets)
        mine = gradients(found, upstream, *leaves)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    for gradient, theirs in zip(mine, gradients(expected, upstream, *leaves), strict=True):
        torch.testing.assert_close(gradient, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num", [3, 4, 5, 8, 9])  # a row less than a chunk of 4, a chunk, a row more, two chunks
def test_rows_at_the_edge_of_a_chunk_are_neither_lost_nor_counted_twice(num: int):
    hidden, weight, targets, upstream = case(num, 10)
    with chunks_of(4):
        found = linear_cross_entropy(hidden.requires_grad_(), weight.requires_grad_(), targets)[0]
        mine = gradients(found, upstream, hidden, weight)
    expected = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    for gradient, theirs in zip(mine, gradients(expected, upstream, hidden, weight), strict=True):
        torch.testing.assert_close(gradient, theirs)


def test_an_output_layer_alone_can_be_trained():
    hidden, weight, targets, upstream = case(7, 9)
    (mine,) = gradients(linear_cross_entropy(hidden, weight.requires_grad_(), targets)[0], upstream, weight)
    (theirs,) = gradients(F.cross_entropy(hidden @ weight.T, targets, reduction="none"), upstream, weight)
    torch.testing.assert_close(mine, theirs)


def test_gradients_are_those_of_finite_differences():
    hidden, weight, targets, _ = (value.double() if value.is_floating_point() else value for value in case(3, 5))
    # float32 inside: a step large enough to be told from its rounding
    torch.autograd.gradcheck(
        lambda states, layer: linear_cross_entropy(states, layer, targets)[0].double(),
        (hidden.requires_grad_(), weight.requires_grad_()),
        eps=1e-2,
        atol=5e-3,
    )


@pytest.mark.parametrize("trains_weight", [False, True])
def test_bfloat16_states_cost_only_their_rounding(trains_weight: bool):
    hidden, weight, targets, upstream = case(40, 30)
    half, half_weight = hidden.bfloat16(), weight.bfloat16()
    exact, exact_weight = half.float().requires_grad_(), half_weight.float().requires_grad_()
    expected = F.cross_entropy(exact @ exact_weight.T, targets, reduction="none")
    leaves = [half.requires_grad_(), *([half_weight.requires_grad_()] if trains_weight else [])]
    found, _ = linear_cross_entropy(half, half_weight, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.05)
    theirs = gradients(expected, upstream, exact, exact_weight)
    for mine, leaf, wanted in zip(gradients(found, upstream, *leaves), leaves, theirs, strict=False):
        assert mine.dtype == leaf.dtype == torch.bfloat16
        assert float((mine.float() - wanted).norm() / wanted.norm()) < 0.02


def test_an_output_layer_in_float32_gets_its_gradient_in_float32_from_bfloat16_states():
    hidden, weight, targets, upstream = case(12, 8)
    half = hidden.bfloat16().requires_grad_()
    found, _ = linear_cross_entropy(half, weight.requires_grad_(), targets)
    to_states, to_weight = gradients(found, upstream, half, weight)
    assert (to_states.dtype, to_weight.dtype) == (torch.bfloat16, torch.float32)
    (wanted,) = gradients(F.cross_entropy(half.float() @ weight.T, targets, reduction="none"), upstream, weight)
    assert float((to_weight - wanted).norm() / wanted.norm()) < 0.02


def test_logits_far_from_zero_stay_finite():
    hidden, weight, targets, upstream = case(5, 7)
    hidden = (hidden * 1e3).requires_grad_()
    found, _ = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found, F.cross_entropy(hidden @ weight.T, targets, reduction="none"))
    assert gradients(found, upstream, hidden)[0].isfinite().all()


class _LargestTensor(TorchDispatchMode):
    """Notes how many values the largest tensor holds that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.values = max(self.values, made.numel())
        return made


@pytest.mark.parametrize("trains_weight", [False, True])
def test_the_whole_table_of_logits_never_exists(trains_weight: bool):
    num, words = 100, 50
    hidden, weight, targets, upstream = case(num, words)
    leaves = [hidden.requires_grad_(), *([weight.requires_grad_()] if trains_weight else [])]

    def largest(rows: int) -> int:
        with chunks_of(rows), _LargestTensor() as found:
            gradients(linear_cross_entropy(hidden, weight, targets)[0], upstream, *leaves)
        return found.values

    assert largest(num) == num * words
    assert largest(8) <= num * WIDTH < num * words
