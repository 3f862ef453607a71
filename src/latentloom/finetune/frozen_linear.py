"""Frozen linear layers that rest in eight bits and are trained through."""

import re
from collections.abc import Callable, Sequence

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

FP8 = torch.float8_e4m3fn
_FP8_MAX = torch.finfo(FP8).max


#: Layers that keep their precision: those diffusers lists for Wan (embedders and norms), and the last projection, which
#: is no part of a block and whose rounding would be seen directly in the result.
SKIPPED = (*WanTransformer3DModel._skip_layerwise_casting_patterns, "^proj_out$")


def store_frozen_in_fp8(
    module: nn.Module, compute_dtype: torch.dtype, skip: Sequence[str] = SKIPPED
) -> dict[str, "FrozenFp8Linear"]:
    """Keep a module's frozen linear layers in float8 (e4m3), with one scale per output, and give them by name.

    Halves the memory of bfloat16 weights, in training too: diffusers' hooks for layerwise casting leave the cast
    weight of every layer behind for the backward pass. Layers with a weight or bias that is trained stay as they are,
    so adapters keep their precision, and adapters can be injected before or after.

    Args:
        module: changed in place.
        compute_dtype: of the matrix products.
        skip: regular expressions; layers whose name has a match stay as they are.
    """
    stored: dict[str, FrozenFp8Linear] = {}
    for name, layer in list(module.named_modules()):
        trained = any(parameter.requires_grad for parameter in layer.parameters())
        if type(layer) is not nn.Linear or trained or any(re.search(pattern, name) for pattern in skip):
            continue
        stored[name] = FrozenFp8Linear(layer, compute_dtype)
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, stored[name])
    return stored


class FrozenFp8Linear(nn.Linear):
    """A linear layer whose weight is float8 wherever it rests, cast up while it is used, forward and backward.

    Scales are powers of two, so that casting up is exact in bfloat16 as well as in float32. Moving the layer to another
    dtype leaves it as it is.

    Args:
        layer: what is replaced; its weight is rounded to 4 significant bits.
        compute_dtype: of the matrix products and the result.
    """

    def __init__(self, layer: nn.Linear, compute_dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        largest = layer.weight.detach().float().abs().amax(dim=1, keepdim=True)
        # Rows of zeros have no scale of their own.
        scale = torch.where(largest > 0, torch.exp2(torch.floor(torch.log2(_FP8_MAX / largest))), 1.0)
        codes = (layer.weight.detach().float() * scale).to(FP8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.register_buffer("weight_scale", 1 / scale, persistent=False)
        self.compute_dtype = compute_dtype

    def dequantised(self) -> Float[Tensor, "out in"]:
        """The weight that products are computed with, in the compute dtype."""
        return _cast_up(self.weight, self.get_buffer("weight_scale"), self.compute_dtype)

    def forward(self, input: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        scale = self.get_buffer("weight_scale")
        result = _Fp8Product.apply(input.to(self.compute_dtype), self.weight, scale)
        return result if bias is None else result + bias

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenFp8Linear":
        # Every dtype that a model is moved to holds all of float8 and powers of two, so the way back is exact.
        keep = (FP8, torch.float32)
        return super()._apply(lambda t: fn(t).to(t.dtype) if t.dtype in keep else fn(t), recurse)


class _Fp8Product(torch.autograd.Function):
    """x @ weight.T. Between forward and backward only the float8 weight is kept, never its cast."""

    @staticmethod
    def forward(ctx, x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(codes, scale)
        ctx.dtype = x.dtype
        return functional.linear(x, _cast_up(codes, scale, x.dtype))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None]:
        codes, scale = ctx.saved_tensors
        return gradients[0].to(ctx.dtype) @ _cast_up(codes, scale, ctx.dtype), None, None


def _cast_up(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype).mul_(scale.to(dtype))
