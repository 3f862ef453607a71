"""Frozen weights of transformer blocks that wait on the CPU for their turn, in training too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


def swapped_per_stage(blocks_to_swap: int, blocks_per_stage: Sequence[int]) -> list[int]:
    """How many of its blocks each pipeline stage swaps: in proportion, and together as many as were asked for.

    Args:
        blocks_to_swap: of all stages, at most the number of blocks.
        blocks_per_stage: transformer blocks of each stage; may be 0.
    """
    total = max(sum(blocks_per_stage), 1)
    shares = [blocks_to_swap * count / total for count in blocks_per_stage]
    swapped = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda stage: swapped[stage] - shares[stage])
    for stage in by_remainder[: blocks_to_swap - sum(swapped)]:
        swapped[stage] += 1
    return swapped


class _Note(NamedTuple):
    """Which part of which frozen weight autograd needs."""

    block: int
    parameter: nn.Parameter
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class BlockSwap:
    """Keeps at most `len(blocks) - num_swapped` blocks' frozen weights on the device, but one at the least.

    The blocks on the device are a window that slides in the direction of travel: forward it begins at the block that
    computes, backward it ends there. Whoever runs the blocks calls `bring` before a block computes, forward or
    recomputing, and wraps what is not recomputed in `saving`. Trained weights and buffers are moved to the device once
    and stay. On CUDA the next block is copied while this one computes; on a CPU the same copies are made, which saves
    nothing.

    Args:
        blocks: in the order they run. What is frozen (`requires_grad` is false) now is what is swapped.
        num_swapped: blocks that wait on the CPU at any time.
        device: where blocks compute.
    """

    def __init__(self, blocks: Sequence[nn.Module], num_swapped: int, device: torch.device) -> None:
        self._device = device
        self._window = max(len(blocks) - num_swapped, 1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._resting: list[dict[nn.Parameter, Tensor]] = []
        for block in blocks:
            frozen = [parameter for parameter in block.parameters() if not parameter.requires_grad]
            self._resting.append({parameter: self._on_cpu(parameter) for parameter in frozen})
        self._blocks = list(blocks)
        #: Blocks on the device, each with the event that its copy ends with.
        self._present: dict[int, torch.cuda.Event | None] = {}
        #: Where the weights on the device are, to know them again among what autograd saves.
        self._owners: dict[int, tuple[int, nn.Parameter]] = {}
        self._is_suspended = False
        self._last = 0
        self.settle()

    @property
    def resident(self) -> frozenset[int]:
        """The blocks whose weights are on the device."""
        return frozenset(self._present)

    def bring(self, index: int) -> None:
        """Have a block's weights on the device, and those of the blocks that follow in the direction of travel."""
        if not self._is_suspended and (index != self._last or index not in self._present):
            self._slide(index, backward=index < self._last)
        event = self._present[index]
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)

    def put_away(self) -> None:
        """Leave the swapped weights without memory until `settle`, so that whoever moves whole models moves none."""
        self._present.clear()
        self._owners.clear()
        for resting in self._resting:
            for parameter in resting:
                parameter.data = parameter.data.new_empty(0, device="cpu")

    def settle(self) -> None:
        """Put all weights where they belong, wherever they were moved: the first window on the device, others off.

        To be called after anything that moves whole models, as DeepSpeed does when it takes one over.
        """
        self._present.clear()
        self._owners.clear()
        for block, resting in zip(self._blocks, self._resting, strict=True):
            for parameter in block.parameters():
                parameter.data = resting[parameter] if parameter in resting else parameter.data.to(self._device)
            for owner in block.modules():
                for name, buffer in owner.named_buffers(recurse=False):
                    setattr(owner, name, buffer.to(self._device))
        self._slide(0, backward=False)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within it, autograd keeps a note of which frozen weight an operation needs, not the weight.

        Otherwise every operation holds on to the weight it saw, and no memory is freed. In the backward pass a weight
        that is noted brings its block. To be put around the call of `torch.utils.checkpoint`, never within what that
        recomputes, which keeps nothing anyway.
        """

        def pack(tensor: Tensor) -> Tensor | _Note:
            owner = self._owners.get(tensor.untyped_storage().data_ptr())
            if owner is None:
                return tensor
            return _Note(*owner, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

        def unpack(saved: Tensor | _Note) -> Tensor:
            if isinstance(saved, Tensor):
                return saved
            self.bring(saved.block)
            return saved.parameter.data.as_strided(saved.size, saved.stride, saved.offset)

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Within it all blocks are on the device, as for an evaluation that should be fast."""
        self._hold(range(len(self._blocks)))
        self._is_suspended = True
        try:
            yield
        finally:
            self._is_suspended = False
            self._slide(0, backward=False)

    def _slide(self, index: int, backward: bool) -> None:
        start = index - self._window + 1 if backward else index
        start = max(min(start, len(self._blocks) - self._window), 0)
        wanted = range(start, min(start + self._window, len(self._blocks)))
        self._hold(sorted(wanted, key=lambda other: abs(other - index)))
        self._last = index

    def _hold(self, wanted: Sequence[int]) -> None:
        for index in self.resident - set(wanted):
            self._evict(index)
        for index in wanted:
            if index not in self._present:
                self._load(index)

    def _evict(self, index: int) -> None:
        self._present.pop(index, None)
        for parameter, resting in self._resting[index].items():
            self._owners.pop(parameter.untyped_storage().data_ptr(), None)
            parameter.data = resting

    def _load(self, index: int) -> None:
        event = None
        if self._stream is None:
            for parameter, resting in self._resting[index].items():
                parameter.data = resting.clone()
        else:
            # Memory freed by blocks that were evicted is in use until the kernels before this point are done.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            for parameter, resting in self._resting[index].items():
                buffer = torch.empty_like(resting, device=self._device)
                with torch.cuda.stream(self._stream):
                    buffer.copy_(resting, non_blocking=True)
                buffer.record_stream(self._stream)
                parameter.data = buffer
            event = torch.cuda.Event()
            event.record(self._stream)
        self._present[index] = event
        for parameter in filter(torch.numel, self._resting[index]):
            self._owners[parameter.untyped_storage().data_ptr()] = (index, parameter)

    def _on_cpu(self, parameter: nn.Parameter) -> Tensor:
        resting = parameter.detach().to("cpu").contiguous()
        return resting.pin_memory() if self._stream is not None else resting
