"""How good an adapter is on pairs that it does not train on, and which of several is chosen."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentloom.delta.metrics import cosine_distances, retrieval_ranks
from latentloom.delta.model import EmbeddingDelta
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pooled_delta import PromptConstants, pooled_delta

LARGEST_RECALL_LOSS = 0.01
LARGEST_DRIFT = 0.005


@dataclass(frozen=True)
class Score:
    """What an adapter does to the validation pairs.

    Args:
        cosine: mean cosine of the adjusted base prompts to their rewrites.
        recall_at_1: share of adjusted base prompts whose nearest rewrite is the right one.
        drift: mean 1 - cosine of the rewrites before and after; they need no adjustment.
    """

    cosine: float
    recall_at_1: float
    drift: float

    def keeps(self, before: "Score") -> bool:
        """Whether retrieval and the rewrites suffer no more than is allowed, compared with no adapter.

        Source: docs/systems/delta.md, "How the adapter is chosen".
        """
        return self.recall_at_1 >= before.recall_at_1 - LARGEST_RECALL_LOSS and self.drift <= LARGEST_DRIFT

    def rank(self, before: "Score") -> tuple[bool, float]:
        """What the choice maximises: first to keep to the constraints, then the cosine."""
        return self.keeps(before), self.cosine

    def to_json(self) -> dict[str, float]:
        """The three figures by name."""
        return asdict(self)


class Validation:
    """The validation pairs, ready to score adapters on.

    Args:
        pairs: at least one.
    """

    def __init__(self, pairs: PairEmbeddings) -> None:
        self.base = PromptConstants.of(pairs.base)
        self.rewritten = PromptConstants.of(pairs.rewritten)
        self.labels = pairs.rewrite_labels()
        self.before = Score(*self._nearness(self.base.pooled), drift=0.0)

    @torch.no_grad()
    def score(self, adapter: EmbeddingDelta) -> Score:
        """What the adapter does to the validation pairs."""
        drift = cosine_distances(self.rewritten.pooled, adjusted_pools(adapter, self.rewritten)).mean().item()
        return Score(*self._nearness(adjusted_pools(adapter, self.base)), drift)

    def _nearness(self, adjusted: Float[Tensor, "B D"]) -> tuple[float, float]:
        cosine = F.cosine_similarity(adjusted, self.rewritten.pooled).mean().item()
        ranks = retrieval_ranks(adjusted, self.rewritten.pooled, self.labels)
        return cosine, (ranks == 1).float().mean().item()


def adjusted_pools(adapter: EmbeddingDelta, prompts: PromptConstants) -> Float[Tensor, "B D"]:
    """The pooled prompts after the adapter, its gate included."""
    gates = torch.ones(len(prompts.pooled), device=prompts.pooled.device)
    if adapter.gate_net is not None:
        gates = adapter.gate_net(prompts.features)
    return prompts.pooled + gates.unsqueeze(1) * pooled_delta(adapter, prompts).mean
