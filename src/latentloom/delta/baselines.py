"""What an adapter has to beat, in closed form: a constant shift, and ridge regression on pooled prompts."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import mean_per_prompt

NO_ADAPTER, MEAN_DELTA, RIDGE = "no adapter", "mean delta", "ridge"
BASELINES = (NO_ADAPTER, MEAN_DELTA, RIDGE)

_PENALTIES = tuple(10.0**power for power in range(-5, 3))
"""Tried for ridge, in units of the features' mean squared singular value."""


@dataclass(frozen=True, eq=False)
class RidgeFit:
    """delta(e) = (LN(e) - centre) matrix + bias, the matrix as left [D, K] times right [K, D]."""

    centre: Float[Tensor, "D"]
    left: Float[Tensor, "D K"]
    right: Float[Tensor, "K D"]
    bias: Float[Tensor, "D"]
    penalty: float

    def factors(self, rank: int) -> tuple[Float[Tensor, "R D"], Float[Tensor, "D R"]]:
        """`down` and `up` of an adapter of that rank whose product is nearest to the matrix; zeros fill up a rank
        that is higher than the matrix's.

        Source: Eckart and Young 1936.
        """
        # `left` has orthonormal columns, so the small factor's decomposition is that of the whole
        outer, values, inner = torch.linalg.svd(self.right, full_matrices=False)
        kept = min(rank, len(values))
        root = values[:kept].sqrt()
        down, up = ((self.left @ outer[:, :kept]) * root).T, inner[:kept].T * root
        return F.pad(down, (0, 0, 0, rank - kept)), F.pad(up, (0, rank - kept))


def token_centre(prompts: PromptConstants) -> Float[Tensor, "D"]:
    """The mean of all tokens after layer norm: the adapter's centre."""
    return F.layer_norm(prompts.embeddings.tokens, (prompts.embeddings.dim,)).mean(dim=0)


def pooled_targets(base: Float[Tensor, "B D"], rewritten: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
    """What should be added to pooled base prompts: to the direction of the rewrite at the length of the base.

    A rewrite's pooled vector is shorter when it has more words; cosines do not see that, and a shift should not
    spend itself on it.
    """
    lengths = base.norm(dim=1, keepdim=True)
    return F.normalize(rewritten, dim=1) * lengths - base


def identity_adapter(d_model: int) -> EmbeddingDelta:
    """An adapter that changes nothing."""
    return EmbeddingDelta(_plain(d_model, rank=1)).eval().requires_grad_(False)


def fit_mean(base: Float[Tensor, "B D"], rewritten: Float[Tensor, "B D"]) -> EmbeddingDelta:
    """The same shift for every token: the mean of what is to be added."""
    adapter = EmbeddingDelta(_plain(base.shape[1], rank=1))
    with torch.no_grad():
        adapter.bias.copy_(pooled_targets(base, rewritten).mean(dim=0))
    return adapter.eval().requires_grad_(False)


def fit_ridge(
    base: PromptConstants,
    rewritten: Float[Tensor, "B D"],
    val_base: PromptConstants,
    val_rewritten: Float[Tensor, "V D"],
) -> RidgeFit:
    """Ridge regression from mean LN(e) to what is to be added; the penalty is the one with the best validation cosine.

    Args:
        base, rewritten: the pairs to fit; of the rewrites, the pooled vectors.
        val_base, val_rewritten: the pairs that choose the penalty.

    Source: Hoerl and Kennard 1970, by the singular value decomposition of the features.
    """
    centre = token_centre(base)
    features, val_features = _pooled_norms(base) - centre, _pooled_norms(val_base) - centre
    targets = pooled_targets(base.pooled, rewritten)
    mean, bias = features.mean(dim=0), targets.mean(dim=0)
    outer, values, inner = torch.linalg.svd(features - mean, full_matrices=False)
    projected = outer.T @ (targets - bias)
    fits = []
    for relative in _PENALTIES:
        penalty = relative * values.square().mean().item()
        right = (values / (values.square() + penalty)).unsqueeze(1) * projected
        shift = bias - mean @ inner.T @ right
        adjusted = val_base.pooled + val_features @ inner.T @ right + shift
        fits.append((F.cosine_similarity(adjusted, val_rewritten).mean().item(), relative, right, shift))
    _, relative, right, shift = max(fits, key=lambda fit: fit[0])
    return RidgeFit(centre, inner.T.contiguous(), right, shift, relative)


def fit_baselines(
    base: Float[Tensor, "B D"], rewritten: Float[Tensor, "B D"], ridge: RidgeFit
) -> dict[str, EmbeddingDelta]:
    """What needs no SGD, by name: no adapter, the mean delta and ridge.

    Args:
        base, rewritten: pooled training prompts.
        ridge: fitted to them.
    """
    return {
        NO_ADAPTER: identity_adapter(base.shape[1]),
        MEAN_DELTA: fit_mean(base, rewritten),
        RIDGE: ridge_adapter(ridge),
    }


def ridge_adapter(fit: RidgeFit) -> EmbeddingDelta:
    """The whole ridge solution as an adapter: no cap, no gate, not orthogonal."""
    rank = fit.right.shape[0]
    adapter = EmbeddingDelta(_plain(fit.right.shape[1], rank))
    start_from_fit(adapter, fit)
    return adapter.eval().requires_grad_(False)


@torch.no_grad()
def start_from_fit(adapter: EmbeddingDelta, fit: RidgeFit) -> None:
    """Set an adapter's correction to a linear fit, cut to the adapter's rank."""
    down, up = fit.factors(adapter.config.rank)
    adapter.down.copy_(down)
    adapter.up.copy_(up)
    adapter.bias.copy_(fit.bias)
    adapter.centre.copy_(fit.centre)


def _plain(d_model: int, rank: int) -> DeltaConfig:
    return DeltaConfig(d_model=d_model, rank=rank, cap=None, orthogonal=False, gated=False)


def _pooled_norms(prompts: PromptConstants) -> Float[Tensor, "B D"]:
    """The mean of each prompt's tokens after layer norm, without an array of normed tokens."""
    embeddings = prompts.embeddings
    shifts = mean_per_prompt((prompts.means * prompts.rstds).unsqueeze(1), embeddings)
    return prompts.weighted_mean(prompts.rstds) - shifts
