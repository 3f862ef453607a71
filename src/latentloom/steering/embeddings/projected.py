"""Rows after the model's `text_embedding`, made more different from another prompt's rows.

Both functions return what `RowsPayload` takes: the rows of `other`, moved. Rows are paired by position. Where `other`
has ended the model's own padding rows stand, and they stay; where `base` has ended its rows count as zero, so give it
with its padding rows up to the length of `other` if these should count.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.embeddings.alignment import AlignedOperands, align_operands, in_dtype, match_prompts
from latentloom.steering.embeddings.strength import strength_for
from latentloom.steering.embeddings.token_pairs import TokenPairs, Weights, mix
from latentloom.tensors import TextEmbeddings

InjectMode = Literal["additive", "replace", "blend"]
LARGEST_BOOST = 50.0


def boost_projection(
    base: TextEmbeddings, other: TextEmbeddings, factor: float, keep_norm: bool = True
) -> TextEmbeddings:
    """base + factor * (other - base) on projected rows; factor 1 gives `other` back.

    Args:
        base: rows of the prompt to get away from, B prompts or one that serves all.
        other: rows of the prompt to inject.
        factor: 1 to 50.
        keep_norm: bring every row back to the norm that it has in `other`.

    Raises:
        ConfigError: the factor is out of range.
        ShapeError: rows that do not fit.

    Source: the activation editor document, WanVideoProjectionBooster.
    """
    if not 1 <= factor <= LARGEST_BOOST:
        raise ConfigError(f"factor={factor} is out of range; give 1 to {LARGEST_BOOST:g}")
    other, aligned, pairs = _paired(base, other)
    weights = Weights(torch.full_like(pairs.aa, 1 - factor), torch.full_like(pairs.aa, factor))
    if keep_norm:
        weights = pairs.at_norm(weights, pairs.bb.sqrt(), pairs.second)
    return _rows(other, aligned, weights)


def inject_direct(
    base: TextEmbeddings, other: TextEmbeddings, mode: InjectMode, target_difference: float
) -> TextEmbeddings:
    """Projected rows that differ from `base` by exactly the target, more or less than `other` does.

    With o a row of `other` and b the one of `base`, and s what meets the target:

    - additive: b + s (o - b); norms grow with s, and any difference can be reached.
    - replace: the same direction at the norm of o: `boost_projection` with the factor found, also below 1.
    - blend: on the arc from b to o, norm in proportion; reaches the difference of `other` itself and no more.

    Args:
        base: rows of the prompt that is steered, B prompts or one that serves all.
        other: rows of the prompt to inject.
        mode: see above.
        target_difference: `relative_difference` of base and the result, above 0.

    Raises:
        ConfigError: an unknown mode, a target out of range, or one that the mode cannot reach; the message says what
            it can.
        ShapeError: rows that do not fit.

    Source: the activation editor document, WanVideoDirectInjector.
    """
    if mode not in ("additive", "replace", "blend"):
        raise ConfigError(f"mode={mode!r} is unknown; use additive, replace or blend")
    if not (math.isfinite(target_difference) and target_difference > 0):
        raise ConfigError(
            f"target_difference={target_difference} is out of range; give a relative difference above 0, such as 0.5"
        )
    other, aligned, pairs = _paired(base, other)
    # a row that only base has is the model's padding in the result, and as such zero to the measure
    there = (torch.arange(pairs.aa.shape[1]) < other.lengths.cpu().unsqueeze(1)).to(pairs.aa.dtype)

    def weights_at(strength: Float[Tensor, "B 1"]) -> Weights:
        p, q = _injected(pairs, mode, strength)
        return Weights(p * there, q * there)

    def difference_at(strength: Float[Tensor, "B 1"]) -> Float[Tensor, "B"]:
        return pairs.difference(pairs.first, weights_at(strength))

    targets = torch.full((len(other),), target_difference, dtype=torch.float64)
    strength = strength_for(targets, difference_at, mode)
    return _rows(other, aligned, weights_at(strength.unsqueeze(1)))


def _injected(pairs: TokenPairs, mode: InjectMode, strength: Float[Tensor, "B 1"]) -> Weights:
    """Weights at a strength of 0..1, of which 1 stands for the whole way of the mode."""
    if mode == "blend":
        return pairs.slerp(strength)
    if mode == "replace":  # times (1 - strength), which the norm takes out again
        return pairs.at_norm(Weights(1 - 2 * strength, strength), pairs.bb.sqrt(), pairs.second)
    along = strength / (1 - strength).clamp_min(1e-9)
    return Weights(1 - along, along)


def _paired(base: TextEmbeddings, other: TextEmbeddings) -> tuple[TextEmbeddings, AlignedOperands, TokenPairs]:
    base, other = match_prompts([base, other])
    aligned = align_operands([base, other])
    return other, aligned, TokenPairs.of(aligned.rows[0], aligned.rows[1])


def _rows(other: TextEmbeddings, aligned: AlignedOperands, weights: Weights) -> TextEmbeddings:
    moved = mix(aligned.rows[0], aligned.rows[1], weights)
    return in_dtype(TextEmbeddings.from_padded(moved, other.lengths), aligned.dtype)
