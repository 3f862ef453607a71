"""Swapping blocks changes where weights are, and never a result or a gradient."""

import copy
from contextlib import nullcontext

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentloom.finetune.block_swap import BlockSwap, swapped_per_stage
from latentloom.finetune.frozen_linear import store_frozen_in_fp8

CPU = torch.device("cpu")


class Block(nn.Module):
    """A frozen linear layer with an adapter, and a frozen norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.k = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.k(self.norm(x)))


def make_blocks(num_blocks: int, fp8: bool = False) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(Block() for _ in range(num_blocks)).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["k"]), blocks)
    for name, parameter in blocks.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    if fp8:
        store_frozen_in_fp8(blocks, torch.float32)
    return blocks


def run(blocks: nn.ModuleList, swap: BlockSwap | None, x: Tensor, mode: str) -> Tensor:
    """The blocks in a row, as the pipeline's layers run them."""

    def block_at(index: int, x: Tensor) -> Tensor:
        if swap is not None:
            swap.bring(index)
        return blocks[index](x)

    for index in range(len(blocks)):
        with swap.saving() if swap is not None and mode != "bring only" else nullcontext():
            if mode.startswith("recomputed"):
                x = checkpoint(block_at, index, x, use_reentrant=mode.endswith("reentrant"))
            else:
                x = block_at(index, x)
    return x


def gradients(blocks: nn.ModuleList, swap: BlockSwap | None, mode: str = "saving") -> list[Tensor]:
    x = torch.linspace(-1, 1, 48).view(4, 12).requires_grad_()
    y = run(blocks, swap, x, mode)
    y.square().sum().backward()
    trained = [parameter for parameter in blocks.parameters() if parameter.requires_grad]
    result = [tensor.grad for tensor in (x, *trained)]
    for parameter in trained:
        parameter.grad = None
    return [y.detach(), *(gradient for gradient in result if gradient is not None)]


def poison_evicted(swap: BlockSwap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make buffers that were given back useless, as on a device where others get them."""
    evict = swap._evict

    def spoil(index: int) -> None:
        if index in swap.resident:
            for parameter in swap._resting[index]:
                parameter.data.view(torch.uint8).fill_(0x7F)
        evict(index)

    monkeypatch.setattr(swap, "_evict", spoil)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("mode", ["saving", "recomputed", "recomputed reentrant"])
@pytest.mark.parametrize("num_swapped", [0, 1, 3, 4, 5])
def test_gradients_are_those_without_swapping_and_never_read_a_buffer_that_was_given_back(
    num_swapped, mode, fp8, monkeypatch
):
    blocks = make_blocks(5, fp8)
    expected = gradients(copy.deepcopy(blocks), None, mode)
    swap = BlockSwap(list(blocks), num_swapped, CPU)
    poison_evicted(swap, monkeypatch)
    assert len(expected) == 12
    for _ in range(2):
        for ours, without in zip(gradients(blocks, swap, mode), expected, strict=True):
            assert torch.equal(ours, without)


def test_without_saving_autograd_holds_on_to_the_buffers(monkeypatch):
    blocks = make_blocks(5)
    expected = gradients(copy.deepcopy(blocks), None)
    swap = BlockSwap(list(blocks), 3, CPU)
    assert all(torch.equal(*pair) for pair in zip(gradients(blocks, swap, "bring only"), expected, strict=True))
    poison_evicted(swap, monkeypatch)
    assert not all(torch.equal(*pair) for pair in zip(gradients(blocks, swap, "bring only"), expected, strict=True))


@given(num_blocks=st.integers(1, 7), num_swapped=st.integers(0, 7), order=st.lists(st.integers(0, 6), max_size=20))
def test_at_most_the_window_is_on_the_device_whatever_the_order(num_blocks, num_swapped, order):
    num_swapped = min(num_swapped, num_blocks)
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(num_blocks)).requires_grad_(False)
    originals = [block.get_parameter("weight") for block in copy.deepcopy(blocks)]
    swap = BlockSwap(list(blocks), num_swapped, CPU)
    for index in (index % num_blocks for index in order):
        swap.bring(index)
        assert index in swap.resident
        assert len(swap.resident) == max(num_blocks - num_swapped, 1)
        for block, original in zip(blocks, originals, strict=True):
            assert torch.equal(block.get_parameter("weight"), original)


def test_a_step_copies_every_swapped_block_once_each_way(monkeypatch):
    blocks = make_blocks(6)
    swap = BlockSwap(list(blocks), 4, CPU)
    loaded: list[int] = []
    load = swap._load
    monkeypatch.setattr(swap, "_load", lambda index: (loaded.append(index), load(index)))
    for _ in range(2):
        loaded.clear()
        gradients(blocks, swap)
        assert loaded == [2, 3, 4, 5, 3, 2, 1, 0]


def test_the_next_block_is_on_its_way_before_it_is_needed():
    swap = BlockSwap(list(make_blocks(6)), 4, CPU)
    windows = []
    for index in (0, 1, 2, 5, 4, 3, 0):
        swap.bring(index)
        windows.append(sorted(swap.resident))
    assert windows == [[0, 1], [1, 2], [2, 3], [4, 5], [3, 4], [2, 3], [0, 1]]


def test_trained_weights_never_move_and_frozen_ones_keep_their_values():
    blocks = make_blocks(4)
    before = {name: (parameter.data_ptr(), parameter.clone()) for name, parameter in blocks.named_parameters()}
    swap = BlockSwap(list(blocks), 2, CPU)
    gradients(blocks, swap)
    for name, parameter in blocks.named_parameters():
        place, value = before[name]
        assert torch.equal(parameter, value)
        assert parameter.data_ptr() == place or not parameter.requires_grad


def test_suspended_all_blocks_stay_and_afterwards_training_goes_on():
    blocks = make_blocks(5)
    expected = gradients(copy.deepcopy(blocks), None)
    swap = BlockSwap(list(blocks), 3, CPU)
    with swap.suspended():
        for index in (3, 0, 4):
            swap.bring(index)
            assert swap.resident == frozenset(range(5))
    assert swap.resident == frozenset({0, 1})
    for ours, without in zip(gradients(blocks, swap), expected, strict=True):
        assert torch.equal(ours, without)


def test_an_error_in_an_evaluation_ends_the_suspension():
    swap = BlockSwap(list(make_blocks(5)), 3, CPU)
    with pytest.raises(RuntimeError, match="out of memory"), swap.suspended():
        raise RuntimeError("out of memory")
    assert swap.resident == frozenset({0, 1})


def test_settling_takes_back_what_something_else_moved():
    blocks = make_blocks(4)
    swap = BlockSwap(list(blocks), 2, CPU)
    swap.bring(3)
    for parameter in blocks.parameters():
        parameter.data = parameter.data.clone()
    swap.settle()
    assert swap.resident == frozenset({0, 1})
    for index, block in enumerate(blocks):
        at_rest = block.get_parameter("norm.weight").data_ptr() in {t.data_ptr() for t in swap._resting[index].values()}
        assert at_rest == (index > 1)


def test_micro_batches_that_run_forward_one_after_the_other_are_right_in_the_backward_pass(monkeypatch):
    blocks = make_blocks(5)
    x = torch.linspace(-1, 1, 48).view(4, 12)
    plain = copy.deepcopy(blocks)
    swap = BlockSwap(list(blocks), 3, CPU)
    poison_evicted(swap, monkeypatch)
    for net, used in ((plain, None), (blocks, swap)):
        first, second = (run(net, used, x * scale, "saving") for scale in (1.0, -2.0))
        first.square().sum().backward()
        second.square().sum().backward()
    for ours, expected in zip(blocks.parameters(), plain.parameters(), strict=True):
        if expected.grad is not None:
            assert ours.grad is not None
            assert torch.equal(ours.grad, expected.grad)


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), share=st.floats(0, 1))
def test_stages_swap_together_what_was_asked_for_and_none_more_than_it_has(counts, share):
    asked = int(share * sum(counts))
    swapped = swapped_per_stage(asked, counts)
    assert sum(swapped) == asked
    assert all(0 <= here <= count for here, count in zip(swapped, counts, strict=True))
    total = max(sum(counts), 1)
    assert all(abs(here - asked * count / total) < 1 for here, count in zip(swapped, counts, strict=True))


def test_the_documents_recipe_over_four_stages():
    assert swapped_per_stage(24, [7, 8, 8, 7]) == [6, 6, 6, 6]
    assert swapped_per_stage(24, [30]) == [24]


@pytest.mark.parametrize("recomputed", [False, True])
def test_wans_own_blocks_in_eight_bits_give_the_adapters_the_same_gradients(recomputed, monkeypatch):
    rotary = WanRotaryPosEmbed(12, (1, 2, 2), 64)(torch.empty(1, 1, 2, 4, 4))
    torch.manual_seed(0)
    hidden, context, modulation = torch.randn(2, 8, 24), torch.randn(2, 5, 24), torch.randn(2, 6, 24)
    results = []
    for num_swapped in (0, 3):
        torch.manual_seed(1)
        blocks = nn.ModuleList(WanTransformerBlock(24, 32, 2, cross_attn_norm=True) for _ in range(4))
        blocks.requires_grad_(False)
        store_frozen_in_fp8(blocks, torch.float32)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn2.to_k"], init_lora_weights=False), blocks)
        swap = BlockSwap(list(blocks), num_swapped, CPU)
        poison_evicted(swap, monkeypatch)

        def block_at(index: int, x: Tensor, blocks=blocks, swap=swap) -> Tensor:
            swap.bring(index)
            return blocks[index](x, context, modulation, rotary)

        x = hidden
        for index in range(4):
            with swap.saving():
                x = checkpoint(block_at, index, x, use_reentrant=False) if recomputed else block_at(index, x)
        x.square().sum().backward()
        results.append([parameter.grad for parameter in blocks.parameters() if parameter.requires_grad])
    assert len(results[0]) == 8
    for swapped, whole in zip(*results, strict=True):
        assert torch.equal(swapped, whole)
        assert swapped.abs().max() > 0
