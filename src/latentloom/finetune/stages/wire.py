"""What passes from layer to layer: a tuple of tensors, some of which carry gradients."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
_FLOATS = {bits: dtype for dtype, bits in _BITS.items()}


@dataclass(frozen=True)
class Wire:
    """Names of the tensors that pass between two layers, in their order.

    DeepSpeed wants a gradient for every float tensor that crosses from one stage to the next. What needs none
    therefore travels as the integers with the same bits.

    Args:
        flowing: float tensors that gradients flow back through.
        fixed: the others: int64 tensors as they are, float32 and bfloat16 ones as their bits.
    """

    flowing: tuple[str, ...]
    fixed: tuple[str, ...]

    def pack(self, values: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The named tensors, flowing ones first."""
        fixed = (values[name] for name in self.fixed)
        return (*(values[name] for name in self.flowing), *(_as_bits(value) for value in fixed))

    def unpack(self, tensors: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """The tensors that `pack` packed, by name."""
        return {
            name: tensor if name in self.flowing else _as_floats(tensor)
            for name, tensor in zip((*self.flowing, *self.fixed), tensors, strict=True)
        }


def _as_bits(value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    value = value.detach().contiguous()
    return value.view(_BITS[value.dtype])


def _as_floats(value: Tensor) -> Tensor:
    return value.view(_FLOATS[value.dtype]) if value.dtype in _FLOATS else value
