"""Two prompts as pairs of tokens, and how far apart a mixture of each pair would be.

Whatever moves a token a of one prompt and its counterpart b of the other in the plane that both span gives p a + q b.
How different the moved prompts are then follows from three dot products per pair, so that the right strength of a
move is found without moving anything.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

NEARLY_PARALLEL = 1e-3  # radians; closer to 0 or to half a turn, the arc between two tokens is mostly rounding
NOTHING_LEFT = 1e-6  # share of the terms; a sum that cancels to less has no direction of its own


class Weights(NamedTuple):
    """Moved tokens as combinations of their pairs: of_first * a + of_second * b."""

    of_first: Float[Tensor, "#B #P"]
    of_second: Float[Tensor, "#B #P"]


class TokenPairs(NamedTuple):
    """Dot products of each pair of tokens: B prompts of P positions, in float64 on the CPU.

    The difference of nearly equal prompts is one of nearly equal dot products, which float32 would round away.
    """

    aa: Float[Tensor, "B P"]
    ab: Float[Tensor, "B P"]
    bb: Float[Tensor, "B P"]

    @classmethod
    def of(cls, first: Float[Tensor, "B P D"], second: Float[Tensor, "B P D"]) -> "TokenPairs":
        """The pairs of two blocks of tokens."""
        a, b = (each.to("cpu", torch.float64) for each in (first, second))
        return cls((a * a).sum(dim=-1), (a * b).sum(dim=-1), (b * b).sum(dim=-1))

    @property
    def first(self) -> Weights:
        """The first prompt as it is."""
        return Weights(torch.ones_like(self.aa), torch.zeros_like(self.aa))

    @property
    def second(self) -> Weights:
        """The second prompt as it is."""
        return Weights(torch.zeros_like(self.aa), torch.ones_like(self.aa))

    def norm(self, weights: Weights) -> Float[Tensor, "B P"]:
        """L2 norm of each moved token."""
        p, q = weights
        return (p * p * self.aa + 2 * p * q * self.ab + q * q * self.bb).clamp_min(0).sqrt()

    def at_norm(self, weights: Weights, norm: Float[Tensor, "B P"], otherwise: Weights) -> Weights:
        """The moved tokens brought to given norms; where the move cancels a token, `otherwise`."""
        p, q = weights
        length = self.norm(weights)
        gone = length <= NOTHING_LEFT * (p.abs() * self.aa.sqrt() + q.abs() * self.bb.sqrt())
        factor = norm / length.where(~gone, 1)
        return Weights((p * factor).where(~gone, otherwise[0]), (q * factor).where(~gone, otherwise[1]))

    def difference(self, first: Weights, second: Weights) -> Float[Tensor, "B"]:
        """`relative_difference` of two moved prompts."""
        apart = self.norm(Weights(first[0] - second[0], first[1] - second[1])).norm(dim=1)
        scale = self.norm(first).norm(dim=1).sqrt() * self.norm(second).norm(dim=1).sqrt()
        return (apart / scale).where(apart > 0, apart)

    def straight(self) -> Float[Tensor, "B P"]:
        """1 where no arc leads from one token to the other: one is zero, or they are parallel or opposite."""
        angle = self._angle()
        return ((self.aa * self.bb == 0) | (angle < NEARLY_PARALLEL) | (angle > torch.pi - NEARLY_PARALLEL)).to(
            self.aa.dtype
        )

    def slerp(self, share: float | Float[Tensor, "B 1"]) -> Weights:
        """The token between each pair: its direction on the arc, its norm in proportion; or on the straight line.

        Args:
            share: 0 is the first token, 1 the second.

        Source: Shoemake 1985, "Animating rotation with quaternion curves", section 3.3.
        """
        straight = self.straight() > 0
        angle = self._angle().where(~straight, 1)
        a, b = self.aa.sqrt(), self.bb.sqrt()
        norm = ((1 - share) * a + share * b) / angle.sin()
        of_first = ((1 - share) * angle).sin() * norm / a.where(a > 0, 1)
        of_second = (share * angle).sin() * norm / b.where(b > 0, 1)
        return Weights(of_first.where(~straight, 1 - share), of_second.where(~straight, share))

    def _angle(self) -> Float[Tensor, "B P"]:
        lengths = (self.aa * self.bb).sqrt()
        return (self.ab / lengths.where(lengths > 0, 1)).clamp(-1, 1).acos()


def mix(first: Float[Tensor, "B P D"], second: Float[Tensor, "B P D"], weights: Weights) -> Float[Tensor, "B P D"]:
    """The moved tokens themselves."""
    p, q = (each.to(first).unsqueeze(-1) for each in weights)
    return p * first + q * second
