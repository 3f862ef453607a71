"""How far filled patches are from the clean ones."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ShapeError


def interpolation_errors(
    filled: Float[Tensor, "B N D"], clean: Float[Tensor, "B N D"], given: Bool[Tensor, "B N"]
) -> dict[str, float]:
    """Mean squared errors of filled patches, under the names of the training curve.

    Args:
        filled: what an interpolation gave; B images of N patches of D values.
        clean: the true patches.
        given: True where a patch was given.

    Returns:
        "interp/mse_missing" over the missing patches of the batch (0 if none is missing) and "interp/mse_all".

    Raises:
        ShapeError: the shapes differ.
    """
    if filled.shape != clean.shape or filled.shape[:2] != given.shape:
        raise ShapeError(
            f"filled {tuple(filled.shape)}, clean {tuple(clean.shape)} and mask {tuple(given.shape)}; "
            "give [B, N, D] twice and [B, N]"
        )
    dtype = torch.promote_types(filled.dtype, torch.float32)
    squared = (filled.to(dtype) - clean.to(dtype)).square().mean(dim=-1)
    missing = ~given
    return {
        "interp/mse_missing": float((squared * missing).sum() / missing.sum().clamp_min(1)),
        "interp/mse_all": float(squared.mean()),
    }
