"""An adapter at inference, on text embeddings in the shape that each host holds them in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentloom.delta.model import EmbeddingDelta
from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

WAN_VIDEO_KEY = "prompt_embeds"
"""Where ComfyUI-WanVideoWrapper keeps the prompts of a WANVIDEOTEXTEMBEDS."""


def apply_to_text_embeddings(
    embs: Sequence[Float[Tensor, "_ D"]],
    seq_lens: Int[Tensor, "B"] | Sequence[int],
    adapter: EmbeddingDelta,
    strength: float = 1.0,
) -> list[Tensor]:
    """Adjusted embeddings in new tensors, of the caller's shapes, dtypes and devices.

    Args:
        embs: one tensor [L_i, D] per prompt, as Wan's own text encoder gives them.
        seq_lens: true lengths; rows of a prompt past its length are padding and come back as they are.
        adapter: from `load_embdelta_adapter`; it computes on its own device.
        strength: 1 is as trained, 0 changes nothing.

    Raises:
        ShapeError: not one length per prompt, a prompt shorter than its length, or another width than the adapter's.

    Source: the Embedding Delta v2 document, "Use at inference".
    """
    lengths = [int(length) for length in seq_lens]
    if len(lengths) != len(embs):
        raise ShapeError(f"{len(lengths)} lengths for {len(embs)} prompts; give one per prompt")
    for emb, length in zip(embs, lengths, strict=True):
        if not 0 <= length <= len(emb):
            raise ShapeError(f"a length of {length} for a prompt of {len(emb)} rows; give its true number of tokens")
    adjusted = [emb.clone() for emb in embs]
    if not adjusted:
        return adjusted
    prompts = TextEmbeddings.from_list(
        [emb[:length].to(adapter.bias.device) for emb, length in zip(embs, lengths, strict=True)]
    )
    for result, tokens in zip(adjusted, adapter(prompts, strength).to_list(), strict=True):
        result[: len(tokens)] = tokens.to(result)
    return adjusted


def apply_to_prompt_embeds(
    prompt_embeds: Float[Tensor, "B P D"],
    adapter: EmbeddingDelta,
    strength: float = 1.0,
    mask: Bool[Tensor, "B P"] | Int[Tensor, "B P"] | None = None,
) -> Float[Tensor, "B P D"]:
    """Adjusted `prompt_embeds` of diffusers' Wan pipelines; padding stays zero.

    Args:
        prompt_embeds: prompts of P positions, zeros after each one's end.
        adapter, strength: as in `apply_to_text_embeddings`.
        mask: true where a token is; None takes a prompt to end at its last row that is not all zeros.

    Raises:
        ShapeError: a mask with a hole, or another width than the adapter's.
    """
    if mask is None:
        positions = torch.arange(1, prompt_embeds.shape[1] + 1, device=prompt_embeds.device)
        lengths = (prompt_embeds.ne(0).any(dim=-1) * positions).amax(dim=1)
        prompts = TextEmbeddings.from_padded(prompt_embeds, lengths=lengths)
    else:
        prompts = TextEmbeddings.from_padded(prompt_embeds, mask=mask)
    adjusted = adapter(prompts.to(adapter.bias.device), strength).to(prompt_embeds.device)
    return adjusted.padded(prompt_embeds.shape[1])


def apply_to_wan_video_embeds(
    text_embeds: Mapping[str, Any], adapter: EmbeddingDelta, strength: float = 1.0
) -> dict[str, Any]:
    """A WANVIDEOTEXTEMBEDS with its positive prompts adjusted; the negative ones and all other entries stay.

    Args:
        text_embeds: of ComfyUI-WanVideoWrapper; `prompt_embeds` is a list of tensors [L_i, D], or from its text
            embedding bridge one tensor [B, P, D].
        adapter, strength: as in `apply_to_text_embeddings`.

    Raises:
        ShapeError: no list of prompts under that key, or another width than the adapter's.
    """
    prompts = text_embeds.get(WAN_VIDEO_KEY)
    if isinstance(prompts, Tensor) and prompts.ndim == 3:
        return {**text_embeds, WAN_VIDEO_KEY: apply_to_prompt_embeds(prompts, adapter, strength)}
    if not isinstance(prompts, list) or not all(isinstance(item, Tensor) and item.ndim == 2 for item in prompts):
        raise ShapeError(
            f"text embeddings without a list of tensors [L, D] under {WAN_VIDEO_KEY!r}; give WanVideo's own"
        )
    adjusted = apply_to_text_embeddings(prompts, [len(item) for item in prompts], adapter, strength)
    return {**text_embeds, WAN_VIDEO_KEY: adjusted}
