"""How well classes are told apart, on a sample small enough for all its pairs."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting import diagnostics
from latentloom.runs.randomness import step_generator

MAX_SAMPLES = 2048


def sampled_separation(
    vectors: Float[Tensor, "N D"], labels: Int64[Tensor, "N"], *, max_samples: int = MAX_SAMPLES, seed: int = 0
) -> dict[str, float] | None:
    """Separation of the classes, and what labels that are dealt out anew reach on the same vectors.

    Of a large set whole classes are drawn, so that the sample's classes have neighbours of their own; classes with a
    single member are left out, as they have no distance within.

    Args:
        vectors: in which distances are taken.
        labels: class of each.
        max_samples: about as many vectors are compared.
        seed: of the draws.

    Returns:
        The keys of `diagnostics.separation`; with "shuffled/" before them those for shuffled labels; and
        "separation/num_samples" and "separation/num_classes" that were compared. None where fewer than two classes
        have two members.
    """
    rows = whole_classes(labels, max_samples, seed)
    chosen, classes = vectors[rows], labels[rows]
    found = diagnostics.separation(chosen, classes) if len(classes.unique()) > 1 else None
    if found is None:
        return None
    order = torch.randperm(len(rows), generator=step_generator(seed, 0, "shuffled labels"))
    by_chance = diagnostics.separation(chosen, classes[order]) or {}
    sizes = {"separation/num_samples": float(len(rows)), "separation/num_classes": float(len(classes.unique()))}
    return found | {f"shuffled/{name}": value for name, value in by_chance.items()} | sizes


def whole_classes(labels: Int64[Tensor, "N"], max_samples: int, seed: int) -> Int64[Tensor, "M"]:
    """Rows of randomly drawn classes with two or more members, all members of each, until there are enough.

    A class with more than half of `max_samples` members is cut, so that there is always room for a second one.
    """
    labels = labels.cpu()
    generator = step_generator(seed, 0, "classes to compare")
    numbers, counts = labels.unique(return_counts=True)
    numbers = numbers[counts >= 2]
    parts, total = [], 0
    for number in numbers[torch.randperm(len(numbers), generator=generator)].tolist():
        members = torch.nonzero(labels == number).flatten()
        members = members[torch.randperm(len(members), generator=generator)[: max(2, max_samples // 2)]]
        if parts and total + len(members) > max_samples and len(parts) > 1:
            break
        parts.append(members)
        total += len(members)
    return torch.cat([labels.new_zeros(0), *parts]).sort().values
