"""The arithmetic of an edit on tokens: pure functions that compute in float32 and give back the dtype they were given.

A strength is a tensor without dimensions rather than a number, so that a compiled block serves every strength.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError

Strength = Float[Tensor, ""]


def mix(tokens: Float[Tensor, "B S D"], other: Float[Tensor, "B S D"], share: Strength) -> Float[Tensor, "B S D"]:
    """Tokens moved by a share of the way towards others, in a straight line."""
    return torch.lerp(tokens.float(), other.float(), share).to(tokens.dtype)


def add(tokens: Float[Tensor, "B S D"], offset: Float[Tensor, "*#B D"], factor: Strength) -> Float[Tensor, "B S D"]:
    """Tokens with a multiple of one direction, or of one row per token, added."""
    return torch.addcmul(tokens.float(), factor, offset.float()).to(tokens.dtype)


def add_keep_norm(
    tokens: Float[Tensor, "B S D"], direction: Float[Tensor, "D"], factor: Strength
) -> Float[Tensor, "B S D"]:
    """Tokens turned towards a direction: a multiple of it is added, then every token gets its length back.

    A token that the addition cancels entirely stays as it was: it has no direction to keep its length in.
    """
    before = tokens.float()
    after = torch.addcmul(before, factor, direction.float())
    length, moved = before.norm(dim=-1, keepdim=True), after.norm(dim=-1, keepdim=True)
    kept = torch.where(moved > 0, after * (length / moved.clamp_min(torch.finfo(torch.float32).tiny)), before)
    return kept.to(tokens.dtype)


def ablate(tokens: Float[Tensor, "B S D"], direction: Float[Tensor, "D"], share: Strength) -> Float[Tensor, "B S D"]:
    """Tokens without a share of their component along a direction; a share of 2 mirrors them.

    Source: directional ablation, Arditi et al. 2024, "Refusal in language models is mediated by a single direction".
    """
    unit = _unit(direction)
    values = tokens.float()
    return torch.addcmul(values, (values @ unit).unsqueeze(-1), -share * unit).to(tokens.dtype)


def rotate(
    tokens: Float[Tensor, "B S D"], first: Float[Tensor, "D"], second: Float[Tensor, "D"], turns: Strength
) -> Float[Tensor, "B S D"]:
    """Tokens turned within the plane of two directions, by a multiple of the angle from the first to the second.

    What is orthogonal to the plane stays, and so does every token's length.
    """
    along, across = plane_basis(first, second)
    angle = turns * torch.atan2(second.float() @ across, second.float() @ along)
    values = tokens.float()
    x, y = (values @ along).unsqueeze(-1), (values @ across).unsqueeze(-1)
    cosine, sine = torch.cos(angle) - 1, torch.sin(angle)
    return (values + (cosine * x - sine * y) * along + (sine * x + cosine * y) * across).to(tokens.dtype)


def plane_basis(
    first: Float[Tensor, "*N D"], second: Float[Tensor, "*N D"]
) -> tuple[Float[Tensor, "*N D"], Float[Tensor, "*N D"]]:
    """Two orthonormal vectors: the first direction, and what of the second is orthogonal to it."""
    along = _unit(first)
    rest = second.float() - (second.float() * along).sum(dim=-1, keepdim=True) * along
    return along, _unit(rest)


def check_plane(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> None:
    """Return if every pair spans a plane.

    Raises:
        ConfigError: a zero direction, or a pair on one line.
    """
    lengths = first.float().norm(dim=-1) * second.float().norm(dim=-1)
    along = (first.float() * second.float()).sum(dim=-1).abs()
    for pair in range(len(first)):
        if not along[pair] < lengths[pair] * (1 - 1e-6):
            raise ConfigError(f"directions {pair} lie on one line and span no plane; give two that differ in direction")


def _unit(vector: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    values = vector.float()
    return values / values.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
