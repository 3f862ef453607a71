"""Taking out all that a family of control vectors tells apart: the span of their directions, not each one by itself."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.plan import DirectionPayload, Operation, Side

SMALLEST_SHARE = 0.05
"""A component of the span counts from this share of the largest one's length on. The values of one attribute, each
against the others, add up to nearly nothing: six colours span five directions, and the sixth component is noise
(docs/experiments/steering.md)."""


def ablate_span(
    controls: Sequence[ControlVector],
    strength: float = 1.0,
    side: Side = "cond",
    blocks: Sequence[float] | None = None,
) -> tuple[Operation, ...]:
    """Operations that take the span of several control vectors out, window by window.

    The directions of each block are replaced by orthonormal ones of the same span, so that taking out one leaves
    nothing of another to be put back.

    Args:
        controls: of one model, site and set of windows, such as one per value of an attribute.
        strength: 1 takes the span out.
        side: which side of guidance.
        blocks: what the strength is multiplied by in each block; None is 1 in all.

    Raises:
        ConfigError: no control vector, or vectors that do not belong together.
    """
    if not controls:
        raise ConfigError("no control vector to take out; give at least one")
    first = controls[0]
    for control in controls[1:]:
        first.cosine(control)  # refuses vectors that do not belong together
    shares = [1.0] * first.num_blocks if blocks is None else list(blocks)
    if len(shares) != first.num_blocks:
        raise ConfigError(f"{len(shares)} shares for {first.num_blocks} blocks; give one for each block")
    operations = []
    for window, place in enumerate(first.windows):
        bases = [
            _basis(torch.stack([control.directions[window, block] for control in controls]))
            for block in range(first.num_blocks)
        ]
        for component in range(max(len(basis) for basis in bases)):
            acts = [len(basis) > component for basis in bases]
            vectors = torch.stack(
                [
                    basis[component] if act else first.directions.new_zeros(first.directions.shape[-1])
                    for basis, act in zip(bases, acts, strict=True)
                ]
            )
            strengths = tuple(strength * share * act for share, act in zip(shares, acts, strict=True))
            operations.append(Operation(first.site, "ablate", strengths, DirectionPayload(vectors), side, place))
    return tuple(operations)


def _basis(directions: Float[Tensor, "K D"]) -> Float[Tensor, "R D"]:
    """Orthonormal rows of the same span, without what is noise beside the largest."""
    _, lengths, rows = torch.linalg.svd(directions.float(), full_matrices=False)
    return rows[(lengths > SMALLEST_SHARE * lengths[:1]) & (lengths > 0)]
