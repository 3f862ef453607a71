"""How evenly samples are spread over classes, and whether a codebook has collapsed."""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.errors import ShapeError

NEAR_EMPTY = 1  # members, at most
#: The fallback's rule: a codebook is poor below this perplexity over K, or above this share of near-empty classes.
LEAST_EVENNESS = 0.5
MOST_NEAR_EMPTY = 0.02


@dataclass(frozen=True)
class Occupancy:
    """Members per class, in figures.

    Attributes:
        num_samples: of all classes.
        num_classes: K, empty classes included.
        num_used: classes with a member.
        entropy: of the classes' shares, in nats; log K where all are equal.
        perplexity: its exponential: as many equal classes would be as even.
        dominance: the largest class's share of the samples.
        empty_share, singleton_share: of the classes with no member, with exactly one.
        near_empty_share: both together.
        mean, median, p10, p90: of the members per class.
    """

    num_samples: int
    num_classes: int
    num_used: int
    entropy: float
    perplexity: float
    dominance: float
    empty_share: float
    singleton_share: float
    near_empty_share: float
    mean: float
    median: float
    p10: float
    p90: float

    def to_json(self) -> dict[str, float]:
        """All of it."""
        return asdict(self)


def occupancy(counts: Int64[Tensor, "K"]) -> Occupancy:
    """The figures of members per class.

    Args:
        counts: members of each class; at least one class has one.

    Raises:
        ShapeError: no members at all.

    Source: the document, "Pseudo-Class Count (K) Planning" and "Collapse diagnostics".
    """
    members = counts.double().cpu()
    total = float(members.sum())
    if not total:
        raise ShapeError("no class has a member; count the classes of at least one sample")
    shares = members / total
    entropy = float(torch.special.entr(shares).sum())
    p10, median, p90 = members.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)).tolist()
    return Occupancy(
        num_samples=int(total),
        num_classes=len(members),
        num_used=int((members > 0).sum()),
        entropy=entropy,
        perplexity=float(torch.tensor(entropy, dtype=torch.float64).exp()),
        dominance=float(shares.max()),
        empty_share=float((members == 0).double().mean()),
        singleton_share=float((members == 1).double().mean()),
        near_empty_share=float((members <= NEAR_EMPTY).double().mean()),
        mean=float(members.mean()),
        median=median,
        p10=p10,
        p90=p90,
    )


def poor_because(figures: Occupancy) -> str | None:
    """Why the classes are too many for the samples, in words; None where they are not.

    The rule: the perplexity is below half of the number of classes, or more than 2 % of them are near-empty (have at
    most one member).
    """
    if figures.perplexity < LEAST_EVENNESS * figures.num_classes:
        return f"perplexity {figures.perplexity:.0f} is below {LEAST_EVENNESS:g} of the {figures.num_classes} classes"
    if figures.near_empty_share > MOST_NEAR_EMPTY:
        return (
            f"{figures.near_empty_share:.1%} of the {figures.num_classes} classes have at most {NEAR_EMPTY} member, "
            f"more than {MOST_NEAR_EMPTY:.0%}"
        )
    return None
