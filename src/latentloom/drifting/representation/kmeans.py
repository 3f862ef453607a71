"""K-means: vectors put into K clusters by Lloyd's iterations, none of them left (nearly) empty where that can be."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError

Backend = Literal["torch", "faiss"]
Nearest = Callable[[Float[Tensor, "N D"], Float[Tensor, "K D"]], tuple[Int64[Tensor, "N"], Float[Tensor, "N"]]]

MAX_ITERATIONS = 20
NUM_ROUNDS = 32  # in which the first centroids are drawn
#: Clusters with less than this share of the mean occupancy are re-seeded. With a larger share more clusters are
#: unsettled than filled; when only empty ones are re-seeded, one in fifteen clusters of noise keeps a single member.
#: In the first iterations a larger share parts centroids that began in one group of vectors; in the last ones only
#: clusters of 0 or 1 are re-seeded, as what was moved last has not settled. Measured in benchmarks/results/kmeans.txt.
FEW_SHARE = 0.2
EARLY_SHARE, EARLY_ITERATIONS = 0.7, 2
LATE_MEMBERS, LATE_ITERATIONS = 2, 4
_NUMBERS_AT_ONCE = 1 << 21  # of the table of distances: 8 MB stay in the processor's cache


@dataclass(frozen=True, eq=False)
class Clusters:
    """What k-means came to.

    Attributes:
        centroids: the mean of each cluster, up to the last half iteration.
        labels: the nearest centroid of each vector.
        inertia: mean squared distance of vectors from their centroids.
        num_iterations: made.
        num_reseeded: centroids that were moved into fuller clusters, all iterations together.
    """

    centroids: Float[Tensor, "K D"]
    labels: Int64[Tensor, "N"]
    inertia: float
    num_iterations: int
    num_reseeded: int


@torch.no_grad()
def fit_kmeans(
    vectors: Float[Tensor, "N D"],
    num_clusters: int,
    *,
    seed: int = 0,
    max_iterations: int = MAX_ITERATIONS,
    few_share: float = FEW_SHARE,
    backend: Backend | None = "torch",
) -> Clusters:
    """Clusters of vectors, by Lloyd's iterations.

    The first centroids are vectors, drawn in 32 rounds with chances that grow with the squared distance from those of
    the rounds before. After every iteration but the last, clusters with few members are re-seeded: the centroid goes
    halfway from the centroid of one of the fullest clusters to one of its members, which divides that cluster. (To put
    it onto the member itself helps little: in 64 dimensions a lone vector is farther from its neighbours than they are
    from their centroid.) It ends early when no vector changes its cluster and none is re-seeded.

    Equal vectors, settings, machine and number of threads give equal clusters.

    Args:
        vectors: of any floating type; they are compared in float32.
        num_clusters: K, at most as many as vectors.
        seed: of all that is drawn.
        max_iterations: at least 1.
        few_share: clusters below this share of the mean occupancy are re-seeded, in the first two iterations below
            0.7 of it, in the last four those with at most one; 0 only ever re-seeds empty ones.
        backend: who finds nearest centroids, see `nearest_centroids`.

    Raises:
        ConfigError: more clusters than vectors, no iteration, or a backend that is not installed.
        ShapeError: vectors that are not finite.

    Source: Lloyd 1982, "Least squares quantization in PCM"; the rounds: Bahmani et al. 2012, arXiv:1203.6402.
    """
    _check(vectors, num_clusters, max_iterations)
    nearest = _nearest_of(backend, vectors.device)
    generator = torch.Generator().manual_seed(seed)
    # far from the origin float32 has few digits left for differences
    centre = vectors.mean(dim=0, dtype=torch.float64).float()
    points = vectors.float() - centre
    centroids = _first_centroids(points, num_clusters, nearest, generator)
    labels, num_reseeded, iteration = torch.full_like(points[:, 0], -1, dtype=torch.int64), 0, 0
    for iteration in range(1, max_iterations + 1):
        before, (labels, _) = labels, nearest(points, centroids)
        counts = torch.bincount(labels, minlength=num_clusters)
        centroids = _means(points, labels, counts, centroids)
        if iteration == max_iterations:
            break
        share = EARLY_SHARE if few_share and iteration <= EARLY_ITERATIONS else few_share
        least = max(1, round(share * len(points) / num_clusters))
        if iteration > max_iterations - LATE_ITERATIONS:
            least = min(least, LATE_MEMBERS)
        num = _reseed_(centroids, points, labels, counts, least, generator)
        num_reseeded += num
        if not num and torch.equal(labels, before):
            break
    labels, squares = nearest(points, centroids)
    inertia = float(squares.mean(dtype=torch.float64))
    return Clusters(centroids + centre, labels, inertia, iteration, num_reseeded)


@torch.no_grad()
def nearest_centroids(
    vectors: Float[Tensor, "N D"], centroids: Float[Tensor, "K _"], backend: Backend | None = "torch"
) -> tuple[Int64[Tensor, "N"], Float[Tensor, "N"]]:
    """The number of the nearest centroid of each vector, and the squared Euclidean distance from it.

    Args:
        vectors, centroids: of any floating type, on one device; they are compared in float32.
        backend: "torch", "faiss" (on the CPU), or None for faiss where it is installed and vectors are on the CPU.

    Raises:
        ConfigError: a backend that is not installed.
        ShapeError: vectors of another width than the centroids.
    """
    if vectors.shape[1] != centroids.shape[1]:
        raise ShapeError(f"vectors of {vectors.shape[1]} numbers for centroids of {centroids.shape[1]}")
    centre = centroids.mean(dim=0, dtype=torch.float64).float()
    nearest = _nearest_of(backend, vectors.device)
    return nearest(vectors.float() - centre, centroids.float() - centre)


def _check(vectors: Tensor, num_clusters: int, max_iterations: int) -> None:
    if not 1 <= num_clusters <= len(vectors):
        raise ConfigError(f"{num_clusters} classes for {len(vectors)} vectors; ask for 1 to as many as there are")
    if max_iterations < 1:
        raise ConfigError(f"{max_iterations} iterations; at least 1 is needed")
    if not bool(vectors.isfinite().all()):
        raise ShapeError("vectors that are not finite cannot be clustered; leave them out")


def _nearest_of(backend: Backend | None, device: torch.device) -> Nearest:
    is_installed = importlib.util.find_spec("faiss") is not None
    if backend == "faiss" and not is_installed:
        raise ConfigError("backend 'faiss' is not installed; use 'torch', or: pip install faiss-cpu")
    if backend == "faiss" or (backend is None and is_installed and device.type == "cpu"):
        return _nearest_by_faiss
    return _nearest_by_torch


def _nearest_by_torch(
    points: Float[Tensor, "N D"], centroids: Float[Tensor, "K D"]
) -> tuple[Int64[Tensor, "N"], Float[Tensor, "N"]]:
    # |x - c|^2 is least where x.c - |c|^2 / 2 is largest, which one matrix product gives
    half = centroids.square().sum(dim=1) / -2
    columns = centroids.T.contiguous()
    rows_at_once = max(1, _NUMBERS_AT_ONCE // len(centroids))
    table = points.new_empty(min(rows_at_once, len(points)), len(centroids))
    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    best = points.new_empty(len(points))
    for start in range(0, len(points), rows_at_once):
        part = slice(start, start + rows_at_once)
        products = torch.addmm(half, points[part], columns, out=table[: len(points[part])])
        torch.max(products, dim=1, out=(best[part], labels[part]))
    return labels, (points.square().sum(dim=1) - 2 * best).clamp_min_(0)


def _nearest_by_faiss(
    points: Float[Tensor, "N D"], centroids: Float[Tensor, "K D"]
) -> tuple[Int64[Tensor, "N"], Float[Tensor, "N"]]:
    faiss = importlib.import_module("faiss")  # not one of this package's own requirements
    index = faiss.IndexFlatL2(points.shape[1])
    index.add(centroids.cpu().numpy())
    squares, labels = index.search(points.cpu().numpy(), 1)
    device = points.device
    return torch.from_numpy(labels[:, 0]).to(device), torch.from_numpy(squares[:, 0]).to(device).clamp_min_(0)


def _first_centroids(
    points: Float[Tensor, "N D"], num_clusters: int, nearest: Nearest, generator: torch.Generator
) -> Float[Tensor, "K D"]:
    """Vectors, drawn in rounds; each round prefers what is far from those drawn before."""
    per_round = -(-num_clusters // NUM_ROUNDS)
    drawn = torch.randperm(len(points), generator=generator)[:per_round]
    is_free = torch.ones(len(points), dtype=torch.bool)
    squares = torch.full((len(points),), torch.inf)
    rows = drawn
    while len(rows) < num_clusters:
        is_free[drawn] = False
        _, new = nearest(points, points[drawn.to(points.device)])
        squares = torch.minimum(squares, new.cpu())
        # of copies of one vector all but the first have a distance of 0, and may be needed all the same
        least = squares.max().clamp_min(torch.finfo(torch.float32).tiny) * torch.finfo(torch.float32).eps
        chances = squares.clamp_min(float(least)) * is_free
        count = min(per_round, num_clusters - len(rows))
        drawn = torch.multinomial(chances.double(), count, generator=generator)
        rows = torch.cat([rows, drawn])
    return points[rows.to(points.device)].clone()


def _means(
    points: Float[Tensor, "N D"], labels: Int64[Tensor, "N"], counts: Int64[Tensor, "K"], before: Float[Tensor, "K D"]
) -> Float[Tensor, "K D"]:
    """The mean of every cluster; an empty one stays where it was."""
    sums = torch.zeros(before.shape, dtype=torch.float64, device=points.device).index_add_(0, labels, points.double())
    means = (sums / counts.clamp_min(1).unsqueeze(1)).float()
    return torch.where(counts.unsqueeze(1) > 0, means, before)


def _reseed_(
    centroids: Float[Tensor, "K D"],
    points: Float[Tensor, "N D"],
    labels: Int64[Tensor, "N"],
    counts: Int64[Tensor, "K"],
    least: int,
    generator: torch.Generator,
) -> int:
    """Move the centroids of clusters with few members into the fullest ones; gives how many were moved."""
    num_full = int((counts >= 2 * least).sum())
    num = min(int((counts < least).sum()), num_full)
    if not num:
        return 0
    fewest = counts.argsort(stable=True)[:num]
    fullest = counts.argsort(descending=True, stable=True)[:num]
    # the member with the largest random number is a random member
    numbers = torch.rand(len(points), generator=generator, dtype=torch.float64).to(points.device)
    largest = numbers.new_full((len(counts),), -1).scatter_reduce_(0, labels, numbers, "amax")
    rows = torch.nonzero(numbers == largest[labels]).flatten()
    member = torch.zeros_like(counts).index_copy_(0, labels[rows], rows)
    centroids[fewest] = (points[member[fullest]] + centroids[fullest]) / 2
    return num
