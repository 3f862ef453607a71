"""What training minimises, as functions of pooled vectors alone."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.delta.config import TrainConfig
from latentloom.delta.pooled_delta import PooledDelta


@dataclass(frozen=True, eq=False)
class LossTerms:
    """The parts of the loss, not weighted yet; scalars."""

    cosine: Float[Tensor, ""]
    contrast: Float[Tensor, ""]
    anchor: Float[Tensor, ""]
    magnitude: Float[Tensor, ""]
    gate: Float[Tensor, ""]

    def total(self, config: TrainConfig) -> Float[Tensor, ""]:
        """Their weighted sum."""
        return (
            self.cosine
            + config.w_nce * self.contrast
            + config.w_anchor * self.anchor
            + config.w_l2 * self.magnitude
            + config.w_gate * self.gate
        )

    def detached(self) -> Float[Tensor, "5"]:
        """The parts in their order, outside the graph."""
        return torch.stack([getattr(self, field.name).detach() for field in fields(self)])


def loss_terms(
    base: Float[Tensor, "B D"],
    rewritten: Float[Tensor, "B D"],
    delta: PooledDelta,
    base_logits: Float[Tensor, "B"],
    rewritten_logits: Float[Tensor, "B"],
    same: Bool[Tensor, "B B"],
    tau: float,
) -> LossTerms:
    """How far the adjusted base prompts are from their rewrites.

    Args:
        base, rewritten: pooled prompts.
        delta: pooled corrections of the base prompts, not gated.
        base_logits, rewritten_logits: of the gate; it should open for the base side and close for the other.
        same: where two pairs have the same rewrite, so that one is no wrong answer for the other.
        tau: temperature of the contrast.

    Source: the Embedding Delta v2 document ("simple sequence-level cosine objective", "small geometry/magnitude
    regularizers"); the contrast is InfoNCE, van den Oord et al. 2018, arXiv:1807.03748, eq. 4.
    """
    gates = base_logits.sigmoid()
    adjusted = F.normalize(base + gates.unsqueeze(1) * delta.mean, dim=1)
    targets = F.normalize(rewritten, dim=1)
    similar = adjusted @ targets.T
    others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    rows = torch.arange(len(base), device=base.device)
    opened = F.binary_cross_entropy_with_logits(base_logits, torch.ones_like(base_logits))
    closed = F.binary_cross_entropy_with_logits(rewritten_logits, torch.zeros_like(rewritten_logits))
    return LossTerms(
        cosine=1 - similar.diagonal().mean(),
        contrast=F.cross_entropy((similar / tau).masked_fill(others, -torch.inf), rows),
        anchor=1 - (adjusted * F.normalize(base, dim=1)).sum(dim=1).mean(),
        magnitude=(gates.square() * delta.square).mean(),
        gate=(opened + closed) / 2,
    )
