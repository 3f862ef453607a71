"""Cross-attention over 512 text rows at the price of the rows that hold text, exactly up to rounding.

Wan zero-pads text embeddings to 512 rows and attends to all of them. The padding rows are equal, so their keys are
equal and so are their values: 512 - L equal keys weigh as much as one key whose logit is higher by log(512 - L).
In bfloat16 that logarithm would round, by up to 2 %; there three equal keys share the weight, each with a logarithm
that bfloat16 holds, and together they are off by less than 1e-5 of it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from diffusers.models.attention_processor import AttentionProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings


class PaddingFold:
    """Turns text embeddings into the short context of the next call of the transformer it is installed in.

    Args:
        max_length: rows that the texts would be padded to.
        dtype: that attention computes in, and of the bias.
    """

    def __init__(self, max_length: int, dtype: torch.dtype = torch.float32) -> None:
        self.max_length = max_length
        self.dtype = dtype
        self.bias: Float[Tensor, "B 1 1 K"] | None = None

    def __call__(self, embeddings: TextEmbeddings) -> Float[Tensor, "B K D"]:
        """The context for `encoder_hidden_states`: the longest text's rows, and one row for all padding, or three.

        Raises:
            ShapeError: where a text is longer than the padded length.
        """
        lengths = embeddings.lengths
        longest = int(lengths.max())
        bias = key_bias(lengths, longest, self.max_length)
        if self.dtype != torch.float32:
            bias = torch.cat([bias[..., :-1], shared_logits(bias[..., -1:], 3, self.dtype)], dim=-1)
        self.bias = bias.to(self.dtype)
        return embeddings.padded(bias.shape[-1])


def key_bias(lengths: Int[Tensor, "B"], longest: int, max_length: int) -> Float[Tensor, "B 1 1 K"]:
    """What is added to the logits of K = `longest + 1` rows, of which the last stands for all padding.

    Args:
        lengths: rows of each text; what lies between a text's end and the last row has no weight.
        longest: at least the longest of them.
        max_length: rows that the texts would be padded to.

    Raises:
        ShapeError: where a text is longer than the padded length.
    """
    if longest > max_length:
        raise ShapeError(f"a text of {longest} rows does not fit into {max_length}: cut it")
    rows = torch.arange(longest + 1, device=lengths.device)
    bias = torch.where(rows < lengths[:, None], 0.0, -math.inf)
    bias[:, longest] = (max_length - lengths).float().log()
    return bias[:, None, None]


def shared_logits(logit: Float[Tensor, "*B 1"], num_rows: int, dtype: torch.dtype) -> Float[Tensor, "*B num_rows"]:
    """Logits that a narrow dtype holds and that together weigh as much as one logit.

    All but the last are rounded towards less weight, and the next one makes up for what is missing.
    """
    weight, logits = logit.double().exp(), []
    for row in range(num_rows):
        wanted = weight.log()
        rounded = wanted.to(dtype)
        if row < num_rows - 1:
            below = torch.nextafter(rounded, torch.full_like(rounded, -math.inf))
            rounded = torch.where(rounded > wanted, below, rounded)
        logits.append(rounded)
        weight = (weight - rounded.double().exp()).clamp_min(0)
    return torch.cat(logits, dim=-1)


@contextmanager
def fold_padding(transformer: WanTransformer3DModel, max_length: int = 512) -> Iterator[PaddingFold]:
    """Within this context, the transformer takes contexts made by the `PaddingFold` that it yields.

    Args:
        transformer: a text-to-video Wan transformer; its cross-attention processors come back on leaving.
        max_length: rows that the text would be padded to.
    """
    fold = PaddingFold(max_length)
    layers = [part for part in transformer.modules() if isinstance(part, WanAttention) and part.is_cross_attention]
    before = [layer.processor for layer in layers]
    try:
        for layer in layers:
            layer.set_processor(cast(AttentionProcessor, FoldedProcessor(fold)))
        yield fold
    finally:
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)


class FoldedProcessor(WanAttnProcessor):
    """Attention over rows that a fold made, or over other rows that come with a key bias of their own as the mask."""

    def __init__(self, fold: PaddingFold) -> None:
        super().__init__()
        self.fold = fold

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None) -> Tensor:
        bias = self.fold.bias if attention_mask is None else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)
