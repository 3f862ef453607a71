"""How far two prompts are apart, as one number that neither padding nor a common scale can change."""

from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings


def relative_difference(first: TextEmbeddings, second: TextEmbeddings) -> Float[Tensor, "B"]:
    """||a - b|| / sqrt(||a|| ||b||) of each pair of prompts, in float32.

    It is 0 for equal prompts, sqrt(2) for orthogonal ones of one norm, 2 for opposite ones, and grows without bound
    as the norms part. Where one prompt is zero throughout and the other is not, it is infinite.

    Args:
        first, second: B prompts each, compared token by token; beyond its own length a prompt is zero.

    Raises:
        ShapeError: different numbers of prompts or different widths.
    """
    if len(first) != len(second) or first.dim != second.dim:
        raise ShapeError(
            f"{len(first)} prompts of width {first.dim} against {len(second)} of width {second.dim}; "
            "give as many of the same width"
        )
    longest = max([*first.lengths.tolist(), *second.lengths.tolist()], default=0)
    a, b = (each.to(first.device).padded(longest).float().flatten(1) for each in (first, second))
    apart = (a - b).norm(dim=1)
    # the roots are taken one by one: a product of two large norms may leave float32
    scale = a.norm(dim=1).sqrt() * b.norm(dim=1).sqrt()
    return (apart / scale).where(apart > 0, apart)
