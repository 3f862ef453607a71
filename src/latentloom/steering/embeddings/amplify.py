"""Two prompts made more different, to a stated relative difference; every token keeps its norm.

The amplifiers work on what the text encoder says, before the model's `text_embedding`; `projected` works after it.
With a and b the tokens at one position, a strength k in 0..1 and every token then brought back to its norm:

| method        | first prompt        | second prompt | at k = 1                         |
|---------------|---------------------|---------------|----------------------------------|
| push_apart    | a - k b             | b - k a       | each pair points opposite ways   |
| maximize_diff | a - k b             | b             | a points where a - b pointed     |
| orthogonalize | a - k (a.b / b.b) b | b             | a is at a right angle to b       |

Up to scale, a - k b is a + s (a - b) with s = k / (1 - k): a step along the difference. A token without a counterpart
stays, and so does one whose move would leave nothing of it (equal tokens; under orthogonalize parallel ones).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.embeddings.alignment import Alignment, align_operands, in_dtype, match_prompts
from latentloom.steering.embeddings.arithmetic import Operand, embeddings_of
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.embeddings.strength import strength_for
from latentloom.steering.embeddings.token_pairs import TokenPairs, Weights, mix
from latentloom.tensors import TextEmbeddings

AmplifyMethod = Literal["push_apart", "maximize_diff", "orthogonalize"]
Move = Callable[[TokenPairs, Float[Tensor, "B 1"]], tuple[Weights, Weights]]


@dataclass(frozen=True, eq=False)
class Amplified:
    """Two prompts after an amplifier, and how far it went.

    Args:
        first: the first prompts, moved; true lengths and norms of tokens are those of before.
        second: the second prompts; moved by `push_apart` only.
        alignment: how tokens of different lengths were paired.
        strength: k of each prompt, 0 where it was different enough already.
        before: relative difference of each pair before.
        reached: and after, measured on the result in its dtype.
    """

    first: TextEmbeddings
    second: TextEmbeddings
    alignment: Alignment
    strength: Float[Tensor, "B"]
    before: Float[Tensor, "B"]
    reached: Float[Tensor, "B"]


def amplify(first: Operand, second: Operand, method: AmplifyMethod, target: float) -> Amplified:
    """Both prompts, at least `target` apart: those that differ less are moved until they differ by just that.

    Args:
        first, second: B prompts each, or one that serves all; tokens are paired by position, zeros beyond the end.
        method: see the table of this module.
        target: relative difference to reach (see `relative_difference`), above 0.

    Raises:
        ConfigError: an unknown method, a target out of range, or one that the method cannot reach with the norms
            kept; the message holds the largest figure that it can.
        ShapeError: operands that do not fit.

    Source: the activation editor document, WanVideoEmbeddingAmplifier.
    """
    if method not in MOVES:
        raise ConfigError(f"method={method!r} is unknown; use {', '.join(MOVES)}")
    if not (math.isfinite(target) and target > 0):
        raise ConfigError(f"target={target} is out of range; give a relative difference above 0, such as 0.6")
    given = match_prompts([embeddings_of(first), embeddings_of(second)])
    aligned = align_operands(given)
    rows, move = aligned.rows, MOVES[method]
    pairs = TokenPairs.of(rows[0], rows[1])

    def difference_at(strength: Float[Tensor, "B 1"]) -> Float[Tensor, "B"]:
        return pairs.difference(*move(pairs, strength))

    unmoved = difference_at(torch.zeros(len(given[0]), 1, dtype=torch.float64))
    strength = strength_for(unmoved.clamp_min(target), difference_at, method)
    moved = [
        in_dtype(TextEmbeddings.from_padded(mix(rows[0], rows[1], weights), before.lengths), before.dtype)
        for before, weights in zip(given, move(pairs, strength.unsqueeze(1)), strict=True)
    ]
    before, reached = relative_difference(*given), relative_difference(*moved)
    return Amplified(moved[0], moved[1], aligned.alignment, strength.float(), before, reached)


def _push_apart(pairs: TokenPairs, strength: Float[Tensor, "B 1"]) -> tuple[Weights, Weights]:
    one = torch.ones_like(strength)
    first = pairs.at_norm(Weights(one, -strength), pairs.aa.sqrt(), pairs.first)
    second = pairs.at_norm(Weights(-strength, one), pairs.bb.sqrt(), pairs.second)
    return first, second


def _maximize_diff(pairs: TokenPairs, strength: Float[Tensor, "B 1"]) -> tuple[Weights, Weights]:
    return _push_apart(pairs, strength)[0], pairs.second


def _orthogonalize(pairs: TokenPairs, strength: Float[Tensor, "B 1"]) -> tuple[Weights, Weights]:
    along = pairs.ab / pairs.bb.where(pairs.bb > 0, 1)
    removed = Weights(torch.ones_like(strength), -strength * along)
    return pairs.at_norm(removed, pairs.aa.sqrt(), pairs.first), pairs.second


MOVES: dict[AmplifyMethod, Move] = {
    "push_apart": _push_apart,
    "maximize_diff": _maximize_diff,
    "orthogonalize": _orthogonalize,
}
