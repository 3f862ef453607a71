"""The adapter: a low-rank correction of every token, orthogonal to it, bounded by it, and gated by its prompt."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from latentloom.delta.pooling import mean_per_prompt
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs import Config
from latentloom.tensors import TextEmbeddings

CapMode = Literal["relative", "absolute"]
_TINY = torch.finfo(torch.float32).tiny


class DeltaConfig(Config):
    """What an adapter is made of.

    Args:
        d_model: channels of the text embeddings.
        rank: of the correction.
        cap: largest length of a token's correction; None is no limit.
        cap_mode: `relative` measures the cap in lengths of the token, `absolute` in embedding units.
        orthogonal: whether the correction's component along its own token is removed.
        gated: whether each prompt has a gate; without one it counts as 1.
        gate_width: hidden units of the gate.
    """

    d_model: Annotated[int, Field(ge=1)]
    rank: Annotated[int, Field(ge=1)] = 64
    cap: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = 0.22
    cap_mode: CapMode = "relative"
    orthogonal: bool = True
    gated: bool = True
    gate_width: Annotated[int, Field(ge=1)] = 32


class EmbeddingDelta(nn.Module):
    """e' = e + strength * gate * delta(e), in float32 whatever the dtype of e, which comes back.

    delta(e) is z = up (down (LN(e) - centre)) + bias without its component along e, shortened to the cap. `up` and
    `bias` start at zero, so an untrained adapter changes nothing.

    Source: the Embedding Delta v2 document, "Key ideas".
    """

    def __init__(self, config: DeltaConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.down = nn.Parameter(torch.randn(config.rank, width) / width**0.5)
        self.up = nn.Parameter(torch.zeros(width, config.rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(width))
        self.gate_net = PromptGate(width, config.gate_width) if config.gated else None

    def forward(self, embeddings: TextEmbeddings, strength: float = 1.0) -> TextEmbeddings:
        """The corrected prompts, in tensors of their own; strength 0 gives the same bits back.

        Raises:
            ShapeError: embeddings of another width.
        """
        return apply_deltas(embeddings, [self], [strength])

    def correction(self, embeddings: TextEmbeddings) -> Float[Tensor, "N D"]:
        """gate * delta for every token, float32."""
        if embeddings.dim != self.config.d_model:
            raise ShapeError(
                f"the embeddings have {embeddings.dim} channels and the adapter was trained on {self.config.d_model}; "
                "give those of the encoder that it was trained with"
            )
        gates = self.gate(embeddings).repeat_interleave(embeddings.lengths)
        return gates.unsqueeze(1) * self.deltas(embeddings.tokens)

    def deltas(self, tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        """delta of every token in float32, not gated."""
        tokens = tokens.float()
        normed = F.layer_norm(tokens, tokens.shape[-1:]) - self.centre
        delta = normed @ self.down.T @ self.up.T + self.bias
        if self.config.orthogonal:
            # twice: what rounding leaves of a component that was nearly all of z would else be seen
            delta = without_component(without_component(delta, tokens), tokens)
        if self.config.cap is None:
            return delta
        return cap_norm(delta, self.limits(tokens.norm(dim=-1, keepdim=True)))

    def limits(self, norms: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The largest length of the corrections of tokens that have these lengths; infinite without a cap."""
        if self.config.cap is None:
            return torch.full_like(norms, torch.inf)
        return (
            self.config.cap * norms if self.config.cap_mode == "relative" else torch.full_like(norms, self.config.cap)
        )

    def gate(self, embeddings: TextEmbeddings) -> Float[Tensor, "B"]:
        """How much of the correction each prompt gets, from 0 to 1."""
        if self.gate_net is None:
            return torch.ones(len(embeddings), device=embeddings.device)
        return self.gate_net(gate_features(embeddings))


class PromptGate(nn.Module):
    """A number from 0 to 1 per prompt: a two-layer network on z-scored features.

    Args:
        d_model: channels of the text embeddings.
        width: hidden units.
    """

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        num_features = d_model + 2
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("deviation", torch.ones(num_features))
        self.hidden = nn.Linear(num_features, width)
        self.out = nn.Linear(width, 1)

    def fit_scale(self, features: Float[Tensor, "B F"]) -> None:
        """Take mean and deviation of the features from those of the training prompts."""
        self.mean = features.mean(dim=0)
        self.deviation = features.std(dim=0, correction=0).clamp_min(1e-6)

    def logits(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B"]:
        """The gate before its sigmoid."""
        scored = (features - self.mean) / self.deviation
        return self.out(F.silu(self.hidden(scored))).squeeze(1)

    def forward(self, features: Float[Tensor, "B F"]) -> Float[Tensor, "B"]:
        return self.logits(features).sigmoid()


def gate_features(embeddings: TextEmbeddings) -> Float[Tensor, "B F"]:
    """What the gate sees of each prompt: F = D + 2 numbers that padding and batch mates have no part in.

    Direction of the pooled prompt p/|p|, log2(n + 1) of its n tokens, and their dispersion 1 - |p|^2 / mean |e|^2.
    """
    tokens = embeddings.tokens.float()
    pooled = mean_per_prompt(tokens, embeddings)
    mean_square = mean_per_prompt(tokens.square().sum(dim=-1, keepdim=True), embeddings)
    dispersion = torch.where(mean_square > 0, 1 - pooled.square().sum(dim=-1, keepdim=True) / mean_square, 0.0)
    size = (embeddings.lengths + 1).float().log2().unsqueeze(1)
    return torch.cat([F.normalize(pooled, dim=-1), size, dispersion], dim=1)


def apply_deltas(
    embeddings: TextEmbeddings, adapters: Sequence[EmbeddingDelta], strengths: Sequence[float]
) -> TextEmbeddings:
    """Prompts corrected by several adapters at once, each from the original token, under one joint cap.

    The joint cap of a token is the largest of its caps times their strengths; for one adapter it changes nothing.

    Args:
        embeddings: the original prompts; they stay as they are.
        adapters: all of the embeddings' width.
        strengths: one per adapter; negative ones go the other way.

    Raises:
        ShapeError: embeddings of another width, or not one strength per adapter.
        ConfigError: a strength that is not finite.
    """
    if len(adapters) != len(strengths):
        raise ShapeError(f"{len(strengths)} strengths for {len(adapters)} adapters; give one each")
    if not all(math.isfinite(strength) for strength in strengths):
        raise ConfigError(f"strengths {list(strengths)}; give finite numbers, 1 is as trained")
    active = [(adapter, strength) for adapter, strength in zip(adapters, strengths, strict=True) if strength]
    if not active:
        return TextEmbeddings(embeddings.tokens.clone(), embeddings.lengths)
    correction = sum(strength * adapter.correction(embeddings) for adapter, strength in active)
    assert isinstance(correction, Tensor)  # for the type checker, which takes an empty sum into account
    tokens = embeddings.tokens.float()
    if len(active) > 1:
        norms = tokens.norm(dim=-1, keepdim=True)
        limits = torch.stack([abs(strength) * adapter.limits(norms) for adapter, strength in active])
        correction = cap_norm(correction, limits.amax(dim=0))
    return TextEmbeddings((tokens + correction).to(embeddings.dtype), embeddings.lengths)


def without_component(delta: Float[Tensor, "N D"], tokens: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """delta minus its component along its token; along a token of zeros there is none."""
    square = tokens.square().sum(dim=-1, keepdim=True).clamp_min(_TINY)
    return delta - (delta * tokens).sum(dim=-1, keepdim=True) / square * tokens


def cap_norm(delta: Float[Tensor, "N D"], limit: Float[Tensor, "N 1"]) -> Float[Tensor, "N D"]:
    """Shorten every delta longer than its limit; directions never change.

    Args:
        delta: correction per token; N tokens of D channels.
        limit: largest L2 norm allowed per token, in embedding units, 0 or more, infinity for no limit.

    Source: the Embedding Delta v2 document, "Token-wise norm cap".
    """
    square = delta.square().sum(dim=-1, keepdim=True)
    return delta * cap_scale(square, limit)


def cap_scale(square: Float[Tensor, "..."], limit: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """min(1, limit / norm) from squared norms; its gradient is finite at a norm of 0."""
    is_long = square > limit.square()
    return torch.where(is_long, limit * torch.where(is_long, square, 1.0).rsqrt(), 1.0)
