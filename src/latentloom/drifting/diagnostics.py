"""What drifting does in a step, for the steps that are logged: the kernel, the features' classes, the queues."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.problems import LEAST_AFFINITY, LEAST_SCALE, LEAST_SQUARED_DISTANCE, SELF_DISTANCE
from latentloom.drifting.queues import SampleQueue


@torch.no_grad()
def kernel_statistics(
    gen: Float[Tensor, "B G S"],
    pos: Float[Tensor, "B P S"],
    neg: Float[Tensor, "B U S"] | None = None,
    *,
    temperatures: Sequence[float],
    weight_gen: Float[Tensor, "B G"] | None = None,
    weight_pos: Float[Tensor, "B P"] | None = None,
    weight_neg: Float[Tensor, "B U"] | None = None,
    valid: Bool[Tensor, "B T"] | None = None,
    masks_self: bool = True,
) -> dict[str, float]:
    """What the kernel of `compute_drift` sees, with the same arguments; a sample's affinity to itself is left out.

    Args:
        masks_self: as of `problems.coefficients`; without it that affinity counts.

    Returns:
        Under "kernel/distance_gen", "_pos" and "_neg" the mean distances from generated samples, in units of the
        call's scale; and for every temperature R, under "kernel/R/...":
        logit: the mean of -distance/R over pairs.
        neighbours: the effective number of targets of a generated sample: the exponential of the entropy of its
        affinities, which are divided by their sum first.
        positive_share: positives' share of all affinity; at one half, attraction and repulsion are in balance.

    Source: the document, "Drifting-kernel diagnostics".
    """
    targets = torch.cat([gen, gen[:, :0] if neg is None else neg, pos], dim=1)
    counts = [gen.shape[1], targets.shape[1] - gen.shape[1] - pos.shape[1], pos.shape[1]]
    targets = targets.double()  # a call per logged step, so that nothing is lost to rounding
    given = (weight_gen, weight_neg, weight_pos)
    weights = torch.cat([_ones(gen, n) if w is None else w.double() for w, n in zip(given, counts, strict=True)], dim=1)
    valid = torch.ones_like(weights, dtype=torch.bool) if valid is None else valid
    targets = targets.masked_fill(~valid.unsqueeze(2), 0)
    pairs = valid[:, : counts[0], None] & valid[:, None, :]
    # differences, not a matrix product: exact for targets far from the origin
    squares = (targets[:, : counts[0], None] - targets[:, None]).square().sum(dim=-1)
    distances = squares.clamp_min(LEAST_SQUARED_DISTANCE).sqrt()
    pair_weights = weights[:, None] * pairs
    scale = (distances * pair_weights).sum() / pair_weights.sum().clamp_min(torch.finfo(torch.float64).tiny)
    distances = distances / scale.clamp_min(LEAST_SCALE)
    is_self = torch.eye(*distances.shape[1:], dtype=torch.bool, device=distances.device)
    others = pairs & ~is_self
    counted = others if masks_self else pairs
    statistics = {
        f"kernel/distance_{name}": _mean(part, mask)
        for name, part, mask in zip(
            ("gen", "neg", "pos"), distances.split(counts, 2), others.split(counts, 2), strict=True
        )
        if mask.any()
    }
    for temperature in temperatures:
        affinities = (
            _affinities(distances + SELF_DISTANCE * (is_self & masks_self), temperature, pairs) * weights[:, None]
        )
        affinities = affinities.masked_fill(~counted, 0)
        name = f"kernel/{temperature:g}"
        statistics[f"{name}/logit"] = _mean(-distances / temperature, others)
        statistics[f"{name}/neighbours"] = _mean(_effective_number(affinities), valid[:, : counts[0]])
        total = affinities.sum().clamp_min(torch.finfo(torch.float64).tiny)
        statistics[f"{name}/positive_share"] = float(affinities[..., -counts[2] :].sum() / total)
    return statistics


def separation(features: Float[Tensor, "N D"], labels: Int64[Tensor, "N"]) -> dict[str, float] | None:
    """How well classes are told apart in a feature space; None where that is not defined.

    Args:
        features: of any dtype; they are compared in float32.
        labels: classes; two or more of them, and one with at least two samples.

    Returns:
        Under "separation/...": ratio, the mean distance within classes over that between classes (lower is better);
        silhouette, from -1 to 1 (higher is better); davies_bouldin, from 0 (lower is better).

    Source: the document, "Mandatory Representation Evaluation".
    """
    features, labels = features.detach().float().cpu(), labels.cpu()
    num_classes = len(labels.unique())
    if not 2 <= num_classes < len(labels):
        return None
    from sklearn.metrics import davies_bouldin_score, silhouette_score  # seconds to import

    distances = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    is_same = labels[:, None] == labels
    others = ~torch.eye(len(labels), dtype=torch.bool)
    within, between = _mean(distances, is_same & others), _mean(distances, ~is_same)
    points, classes = features.numpy(), labels.numpy()
    return {
        "separation/ratio": within / between if between else 1.0,
        "separation/silhouette": float(silhouette_score(points, classes)),
        "separation/davies_bouldin": float(davies_bouldin_score(points, classes)),
    }


def queue_statistics(queue: SampleQueue, name: str = "queue") -> dict[str, float]:
    """How full a queue is, and how evenly its classes were fed.

    Args:
        queue: with rings of all classes.
        name: beginning of the keys.

    Returns:
        Under "name/...": occupancy_mean and occupancy_min, samples held per class; empty_share, of the classes;
        entropy, that of the classes' shares of all samples ever pushed, over that of equal shares: 1 is even, 0 is one
        class alone (or none at all); largest_share, of the class that was fed most.

        Both shares are of samples ever pushed: full rings are all alike, however their classes are fed.

    Source: the document, "Collapse diagnostics".
    """
    held, pushed = queue.occupancy.double().cpu(), queue.num_pushed.double().cpu()
    shares = pushed / pushed.sum().clamp_min(1)
    entropy = torch.special.entr(shares).sum()
    evenest = torch.tensor(float(max(len(pushed), 2))).log()
    return {
        f"{name}/occupancy_mean": float(held.mean()),
        f"{name}/occupancy_min": float(held.min()),
        f"{name}/empty_share": float((held == 0).double().mean()),
        f"{name}/entropy": float(entropy / evenest),
        f"{name}/largest_share": float(shares.max()),
    }


def _affinities(distances: Tensor, temperature: float, pairs: Tensor) -> Float[Tensor, "B G T"]:
    logits = (-distances / temperature).masked_fill(~pairs, -torch.inf)
    # a row or column that does not exist is all -inf, and its softmax NaN
    product = (logits.softmax(dim=2) * logits.softmax(dim=1)).masked_fill(~pairs, 0)
    return product.clamp_min(LEAST_AFFINITY).sqrt()


def _effective_number(affinities: Float[Tensor, "B G T"]) -> Float[Tensor, "B G"]:
    sums = affinities.sum(dim=2, keepdim=True).clamp_min(torch.finfo(affinities.dtype).tiny)
    # affinities are roots times weights: only after this do they sum to 1
    return torch.special.entr(affinities / sums).sum(dim=2).exp()


def _mean(values: Tensor, mask: Tensor) -> float:
    return float(values[mask].double().mean())


def _ones(gen: Float[Tensor, "B G S"], count: int) -> Float[Tensor, "B _"]:
    return gen.new_ones(len(gen), count, dtype=torch.float64)
