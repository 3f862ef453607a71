"""Pseudo-classes for the clips of shards: the condition encoder and its codebook, in passes over the shards."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.clips.condition import SAMPLE_SIZE, ConditionEncoder, batches_of, fit_condition_encoder
from latentloom.drifting.clips.condition_parts import ConditionSettings
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.representation.codebook import Codebook
from latentloom.drifting.representation.kmeans import Backend, Clusters, fit_kmeans
from latentloom.drifting.representation.occupancy import Occupancy, occupancy, poor_because
from latentloom.errors import ConfigError

logger = logging.getLogger(__name__)

_CLIPS_AT_ONCE = 256


@dataclass(frozen=True)
class Quantized:
    """What quantizing came to.

    Attributes:
        codebook: with the number of classes that was settled on.
        tried: by number of classes, the occupancy over all clips; the last one is the codebook's.
        decision: which number was settled on and why.
    """

    codebook: Codebook
    tried: dict[int, Occupancy]
    decision: str


def quantize_clips(
    clips: Iterable[ClipSample],
    num_classes: int,
    fallback: int | None = None,
    *,
    settings: ConditionSettings | None = None,
    features: FeatureEncoder | None = None,
    sample_size: int = SAMPLE_SIZE,
    seed: int = 0,
    backend: Backend | None = "torch",
) -> Quantized:
    """A codebook of clips, with fewer classes where the diagnostics say so.

    In a first pass the encoder is fitted to a sample of the clips, and the centroids to their vectors; in a second one
    all clips get their class (which is not needed where the sample holds them all). If the occupancy is poor by the
    rule of `poor_because`, the same is done with `fallback` classes. Memory does not depend on the number of clips.

    Args:
        clips: of one shape; they are gone through once per pass.
        num_classes: K.
        fallback: classes in the second attempt; half of K when None.
        settings, features: see `fit_condition_encoder`.
        sample_size: clips of the sample.
        seed: of the sample and of k-means.
        backend: see `nearest_centroids`.

    Raises:
        ConfigError: more classes than clips, or than clips of the sample, or a fallback that is not smaller.
    """
    fallback = max(1, num_classes // 2) if fallback is None else fallback
    if not 1 <= fallback < max(num_classes, 2):
        raise ConfigError(f"a fallback of {fallback} classes for {num_classes}; give fewer, at least 1")
    encoder, vectors, num_clips = fit_condition_encoder(
        clips, settings, features=features, sample_size=sample_size, seed=seed
    )
    if num_classes > len(vectors):
        held = "" if num_clips == len(vectors) else f" in the sample of {num_clips}"
        raise ConfigError(f"{num_classes} classes for {len(vectors)} clips{held}; ask for at most as many as there are")
    everything = vectors if len(vectors) == num_clips else None

    def attempt(number: int) -> tuple[Clusters, Int64[Tensor, "K"], Occupancy]:
        clusters = fit_kmeans(vectors, number, seed=seed, backend=backend)
        counts = _count(Codebook(clusters.centroids, encoder), clips, everything, backend)
        return clusters, counts, occupancy(counts)

    decision = f"{num_classes} classes, as asked"
    clusters, counts, figures = attempt(num_classes)
    tried, reason = {num_classes: figures}, poor_because(figures)
    if reason is not None and fallback < num_classes:
        decision = f"{fallback} classes, not {num_classes}: {reason}"
        logger.warning("%s", decision)
        clusters, counts, tried[fallback] = attempt(fallback)
        reason = poor_because(tried[fallback])
        decision = decision if reason is None else f"{decision}; and still {reason}"
    record = _record(encoder, vectors, clusters, num_clips, tried, decision, seed)
    return Quantized(Codebook(clusters.centroids, encoder, record, counts), tried, decision)


def _count(
    codebook: Codebook, clips: Iterable[ClipSample], everything: Float[Tensor, "N D"] | None, backend: Backend | None
) -> Int64[Tensor, "K"]:
    counts = torch.zeros(codebook.num_classes, dtype=torch.int64)
    if everything is not None:
        return counts + torch.bincount(codebook.assign(everything, backend=backend), minlength=len(counts))
    for batch in batches_of(clips, _CLIPS_AT_ONCE):
        labels = codebook.assign(codebook.encoder.embed(batch), backend=backend)
        counts += torch.bincount(labels, minlength=len(counts))
    return counts


def _record(
    encoder: ConditionEncoder,
    vectors: Float[Tensor, "N D"],
    clusters: Clusters,
    num_clips: int,
    tried: dict[int, Occupancy],
    decision: str,
    seed: int,
) -> dict[str, object]:
    variance = float((vectors - vectors.mean(dim=0)).square().sum(dim=1).mean())
    return {
        "num_clips": num_clips,
        "num_fitted": len(vectors),
        "seed": seed,
        "decision": decision,
        "occupancy": {str(number): figures.to_json() for number, figures in tried.items()},
        "keyframes": list(encoder.keyframes),
        "explained_share": 1 - clusters.inertia / variance if variance else 1.0,
        "num_iterations": clusters.num_iterations,
        "num_reseeded": clusters.num_reseeded,
    }
