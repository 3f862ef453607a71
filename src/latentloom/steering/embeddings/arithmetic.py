"""Sums, differences and products of prompts' embeddings, token by token.

    style = difference(gothic, regular)
    gothic_beach = add(beach, style * 0.5).embeddings

Every operation aligns its operands (see `alignment`), computes in float32 and gives the operands' dtype back. What it
returns can be an operand again. Norms are of whole prompts: the lengths of tokens relative to each other carry
meaning, and a token in which two prompts hardly differ should not weigh as much as one in which they do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.embeddings.alignment import AlignedOperands, Alignment, AlignMethod, align_operands, in_dtype
from latentloom.tensors import TextEmbeddings


@dataclass(frozen=True, eq=False)
class Combined:
    """What an operation made of its operands.

    Args:
        embeddings: the result.
        alignment: how operands of different lengths were brought together.
    """

    embeddings: TextEmbeddings
    alignment: Alignment

    def __mul__(self, factor: float) -> "Combined":
        """The result scaled, as in `add(beach, style * 0.5)`."""
        return Combined(scale(self.embeddings, factor), self.alignment)

    __rmul__ = __mul__


Operand = TextEmbeddings | Combined


def difference(
    first: Operand, second: Operand, normalize: bool = False, scale: float = 1.0, align: AlignMethod = "pad"
) -> Combined:
    """What the first prompts have and the second lack: first - second.

    Args:
        first, second: B prompts each, or one that serves all.
        normalize: bring each prompt's difference to an L2 norm of 1 over all its tokens; zeros stay zeros.
        scale: factor on the result, after normalising; then it is the norm.
        align: what happens to different lengths.

    Raises:
        ShapeError, ConfigError: operands that do not fit (see `align_operands`), or a scale that is not finite.

    Source: the activation editor document, WanVideoVectorDifference.
    """
    _require_finite("scale", [scale])
    aligned = align_operands([embeddings_of(first), embeddings_of(second)], align)
    apart = aligned.rows[0] - aligned.rows[1]
    if normalize:
        apart = _at_norm_one(apart)
    return _combined(aligned, apart * scale)


def add(*operands: Operand, weights: Sequence[float] | None = None, align: AlignMethod = "pad") -> Combined:
    """The sum of the operands, each times its weight.

    Args:
        operands: two or more, of B prompts each or of one that serves all; a single one with its weight is scaled.
        weights: one finite number per operand; 1 each when not given.
        align: what happens to different lengths.

    Raises:
        ShapeError, ConfigError: operands or weights that do not fit.

    Source: the activation editor document, WanVideoVectorArithmetic.
    """
    aligned, factors = _weighed(operands, weights, align, fewest=2)
    return _combined(aligned, _sum(aligned, factors))


def weighted_sum(*operands: Operand, weights: Sequence[float] | None = None, align: AlignMethod = "pad") -> Combined:
    """The mean of the operands by weight: `add` with weights divided by the sum of their magnitudes.

    The result stays at the operands' scale. Arguments and errors are those of `add`; weights that are all zero are
    refused.
    """
    aligned, factors = _weighed(operands, weights, align, fewest=2)
    total = sum(abs(factor) for factor in factors)
    if total == 0:
        raise ConfigError(f"weights {factors} are all zero; a weighted sum needs one that is not")
    return _combined(aligned, _sum(aligned, [factor / total for factor in factors]))


def multiply(*operands: Operand, weights: Sequence[float] | None = None, align: AlignMethod = "pad") -> Combined:
    """The product of the operands, channel by channel, each times its weight first.

    Under padding, tokens that not all operands have become zero. Arguments and errors are those of `add`.
    """
    aligned, factors = _weighed(operands, weights, align, fewest=2)
    product = aligned.rows[0] * factors[0]
    for rows, factor in zip(aligned.rows[1:], factors[1:], strict=True):
        product = product * (rows * factor)
    return _combined(aligned, product)


def normalize(*operands: Operand, weights: Sequence[float] | None = None, align: AlignMethod = "pad") -> Combined:
    """The sum of the operands by weight, each prompt brought to an L2 norm of 1 over all its tokens.

    One operand is enough; a prompt of zeros stays zeros. Arguments and errors are otherwise those of `add`.
    """
    aligned, factors = _weighed(operands, weights, align, fewest=1)
    return _combined(aligned, _at_norm_one(_sum(aligned, factors)))


def scale(embeddings: TextEmbeddings, factor: float) -> TextEmbeddings:
    """Every token times one finite factor, in the embeddings' dtype.

    Raises:
        ConfigError: the factor is not finite, or the dtype cannot hold the result.
    """
    _require_finite("factor", [factor])
    exact = embeddings.tokens.to(torch.promote_types(embeddings.dtype, torch.float32))
    return in_dtype(TextEmbeddings(exact * factor, embeddings.lengths), embeddings.dtype)


def prompt_norms(embeddings: TextEmbeddings) -> Float[Tensor, "B"]:
    """L2 norm of each prompt over all its tokens, in float32."""
    longest = max(embeddings.lengths.tolist(), default=0)
    return embeddings.padded(longest).float().flatten(1).norm(dim=1)


def embeddings_of(operand: Operand) -> TextEmbeddings:
    """The embeddings themselves, of an operand that may be the result of an operation."""
    return operand.embeddings if isinstance(operand, Combined) else operand


def _combined(aligned: AlignedOperands, result: Float[Tensor, "B P D"]) -> Combined:
    return Combined(aligned.to_embeddings(result), aligned.alignment)


def _weighed(
    operands: Sequence[Operand], weights: Sequence[float] | None, align: AlignMethod, fewest: int
) -> tuple[AlignedOperands, list[float]]:
    if weights is None and len(operands) < fewest:
        raise ConfigError(f"{len(operands)} operands without weights; give at least {fewest}, or one with its weight")
    factors = [1.0] * len(operands) if weights is None else [float(weight) for weight in weights]
    if len(factors) != len(operands):
        raise ConfigError(f"{len(factors)} weights for {len(operands)} operands; give one each")
    _require_finite("weights", factors)
    return align_operands([embeddings_of(operand) for operand in operands], align), factors


def _sum(aligned: AlignedOperands, factors: Sequence[float]) -> Float[Tensor, "B P D"]:
    total = aligned.rows[0] * factors[0]
    for rows, factor in zip(aligned.rows[1:], factors[1:], strict=True):
        total = total + rows * factor
    return total


def _at_norm_one(rows: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
    # divided by the largest value first, so that squares of half precision's largest values stay in float32
    largest = rows.abs().amax(dim=(1, 2), keepdim=True)
    rows = rows / largest.where(largest > 0, 1)
    norm = rows.flatten(1).norm(dim=1)[:, None, None]
    return rows / norm.where(norm > 0, 1)


def _require_finite(name: str, numbers: Sequence[float]) -> None:
    if not all(math.isfinite(number) for number in numbers):
        given = ", ".join(map(str, numbers))
        raise ConfigError(f"{name} {given}; give finite numbers")
