"""Texts on the way from one sentence vector to another."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.bridge.decoding import GREEDY, DecodingConfig, decode
from latentloom.bridge.model import LatentBridge
from latentloom.errors import ConfigError, ShapeError
from latentloom.tensors import SentenceVector

Method = Literal["spherical", "linear"]

#: Sine of the angle below which two directions count as the same, or as opposite.
_SMALL_SINE = 1e-4


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Vectors between two, and what they say.

    Attributes:
        shares: of the second vector in each of the n steps, from 0 to 1.
        vectors: of each step; the first and last are the two themselves.
        texts: of each step.
    """

    shares: Float[Tensor, "n"]
    vectors: SentenceVector
    texts: list[str]


def interpolate_texts(
    bridge: LatentBridge,
    first: SentenceVector,
    second: SentenceVector,
    num_steps: int,
    method: Method = "spherical",
    config: DecodingConfig = GREEDY,
    generator: torch.Generator | None = None,
) -> Interpolation:
    """What each step from one vector to another says; see `interpolate_vectors` and `decode`."""
    vectors = interpolate_vectors(first, second, num_steps, method)
    texts = [drawn[0] for drawn in decode(bridge, vectors, config, generator)]
    return Interpolation(torch.linspace(0, 1, num_steps), vectors, texts)


def interpolate_vectors(
    first: SentenceVector, second: SentenceVector, num_steps: int, method: Method = "spherical"
) -> SentenceVector:
    """Vectors in even steps from one to another, both included, in float32.

    Sentence vectors differ in direction, and most encoders give all of them the same length. A straight line leaves
    that sphere: halfway between two unrelated sentences its vectors are .7 times as long as any the bridge has seen.

    Args:
        first, second: one vector each.
        num_steps: at least 2.
        method: `spherical` turns the direction evenly and changes the length evenly; `linear` is the straight line.

    Raises:
        ConfigError: fewer than two steps; directions that are opposite, or no direction, in a spherical interpolation.
        ShapeError: not one vector each, or of different widths.
    """
    if num_steps < 2:
        raise ConfigError(f"{num_steps} steps; give at least 2, the two ends")
    if len(first) != 1 or len(second) != 1 or first.dim != second.dim:
        shapes = f"{tuple(first.values.shape)} and {tuple(second.values.shape)}"
        raise ShapeError(f"vectors of shape {shapes}; give one each, of the same width")
    a, b = first.values.float(), second.values.float().to(first.device)
    shares = torch.linspace(0, 1, num_steps, device=a.device)[:, None]
    between = (1 - shares) * a + shares * b if method == "linear" else _turned(a, b, shares)
    return SentenceVector(torch.cat([a, between[1:-1], b]))


def _turned(a: Float[Tensor, "1 D"], b: Float[Tensor, "1 D"], shares: Float[Tensor, "n 1"]) -> Float[Tensor, "n D"]:
    """Between two directions at an even angle, at lengths between theirs."""
    lengths = torch.cat([a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)])
    if not bool((lengths > 0).all()):
        raise ConfigError("a vector of zeros has no direction; use the linear method")
    start, end = a / lengths[0], b / lengths[1]
    angle = 2 * torch.atan2((start - end).norm(), (start + end).norm())  # precise where an arc cosine is not
    sine = angle.sin()
    if sine < _SMALL_SINE and (start * end).sum() < 0:
        raise ConfigError("the two vectors point in opposite directions, with no arc between; use the linear method")
    if sine < _SMALL_SINE:
        direction = start + shares * (end - start)
    else:
        direction = (torch.sin((1 - shares) * angle) * start + torch.sin(shares * angle) * end) / sine
    return direction * (lengths[0] + shares * (lengths[1] - lengths[0]))
