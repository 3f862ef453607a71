"""Times k-means of 30,000 vectors into 1,024 clusters, and counts how evenly they are filled.

Beside it stand scikit-learn's KMeans and MiniBatchKMeans, all on two threads, and the floor: what the products of
vectors and centroids alone would take at the rate of this machine's matrix product.
Run: OMP_WAIT_POLICY=passive OMP_NUM_THREADS=2 .venv/bin/python benchmarks/bench_kmeans.py \\
         > benchmarks/results/kmeans.txt
"""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans
from threadpoolctl import threadpool_limits
from torch import Tensor

from latentloom.drifting.representation import kmeans
from latentloom.drifting.representation.kmeans import fit_kmeans
from latentloom.drifting.representation.occupancy import occupancy

NUM_THREADS = 2
NUM, WIDTH, K = 30_000, 64, 1024
ITERATIONS = kmeans.MAX_ITERATIONS
REPEATS = 7

Result = TypeVar("Result")


def main() -> None:
    torch.set_num_threads(NUM_THREADS)
    with threadpool_limits(NUM_THREADS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's about having stopped after as many iterations
        sets = data_sets()
        print(f"{NUM} x {WIDTH} float32 vectors, K = {K}, {NUM_THREADS} threads, at most {ITERATIONS} iterations")
        print(f"seconds: the quickest of {REPEATS} (scikit-learn and faiss: of one)")
        print("processor: seconds of both cores together; half of it is what two cores that do nothing else can reach")
        print("near-empty: share of clusters with 0 or 1 member; inertia: mean squared distance from the centroid")
        print("floor: the products of vectors and centroids alone, at the rate of a matrix product of 4096 x 4096\n")
        rate = matmul_rate()
        print(f"matrix product: {rate / 1e9:.0f} GFLOP/s\n")
        print(
            f"{'':12}{'':26}{'seconds':>9}{'processor':>11}{'floor':>8}{'perplexity':>12}{'near-empty':>12}{'inertia':>10}{'rounds':>8}"
        )
        for name, vectors in sets.items():
            compare(name, vectors, rate)
        print(
            "\nthe rule: clusters below a share of the mean occupancy are re-seeded, halfway to a member of a full one;"
        )
        print(
            "early: below this share in the first iterations; late: only those with so many members in the last ones\n"
        )
        print(
            f"{'':12}{'share':>6}{'early':>8}{'late':>8}{'perplexity':>12}{'near-empty':>12}{'inertia':>10}{'moved':>8}"
        )
        for name, vectors in sets.items():
            compare_rules(name, vectors)


def compare(name: str, vectors: Tensor, rate: float) -> None:
    fits: dict[str, tuple[Callable[[], tuple[Tensor, float, int]], int]] = {"torch": (lambda: ours(vectors), REPEATS)}
    if importlib.util.find_spec("faiss") is not None:
        fits["faiss for the nearest"] = (lambda: ours(vectors, "faiss"), 1)
    fits["KMeans, k-means++"] = (lambda: theirs(KMeans, vectors, init="k-means++"), 1)
    fits["KMeans, random start"] = (lambda: theirs(KMeans, vectors, init="random"), 1)
    fits["MiniBatchKMeans"] = (lambda: theirs(MiniBatchKMeans, vectors, init="k-means++", batch_size=4096), 1)
    for fit_name, (fit, repeats) in fits.items():
        (seconds, processor), (labels, inertia, iterations) = best_of(fit, repeats)
        figures = occupancy(torch.bincount(labels, minlength=K))
        # the start costs one more, and the labels at the end another one
        floor = f"{2 * NUM * K * WIDTH * (iterations + 2) / rate:8.2f}" if fit_name == "torch" else f"{'':8}"
        print(
            f"{name:12}{fit_name:26}{seconds:9.2f}{processor:11.2f}{floor}{figures.perplexity:12.0f}"
            f"{figures.near_empty_share:12.2%}{inertia:10.3f}{iterations:8}",
            flush=True,
        )


def compare_rules(name: str, vectors: Tensor) -> None:
    early, late = kmeans.EARLY_ITERATIONS, kmeans.LATE_ITERATIONS
    for share, num_early, num_late in (
        (0.0, 0, 0),
        (0.2, 0, 0),
        (0.2, early, 0),
        (0.2, early, late),
        (0.3, early, late),
    ):
        kmeans.EARLY_ITERATIONS, kmeans.LATE_ITERATIONS = num_early, num_late
        clusters = fit_kmeans(vectors, K, few_share=share)
        figures = occupancy(torch.bincount(clusters.labels, minlength=K))
        print(
            f"{name:12}{share:6g}{f'{kmeans.EARLY_SHARE:g}' if num_early else '-':>8}"
            f"{'0 or 1' if num_late else '-':>8}{figures.perplexity:12.0f}{figures.near_empty_share:12.2%}"
            f"{clusters.inertia:10.3f}{clusters.num_reseeded:8}",
            flush=True,
        )
    kmeans.EARLY_ITERATIONS, kmeans.LATE_ITERATIONS = early, late


def ours(vectors: Tensor, backend: kmeans.Backend = "torch") -> tuple[Tensor, float, int]:
    clusters = fit_kmeans(vectors, K, backend=backend)
    return clusters.labels, clusters.inertia, clusters.num_iterations


def theirs(
    kind: Callable[..., KMeans | MiniBatchKMeans], vectors: Tensor, **given: object
) -> tuple[Tensor, float, int]:
    fitted = kind(K, n_init=1, max_iter=ITERATIONS, random_state=0, **given).fit(vectors.numpy())
    labels = torch.from_numpy(np.asarray(fitted.labels_)).long()
    return labels, float(fitted.inertia_ or 0) / len(vectors), int(fitted.n_iter_ or 0)


def data_sets() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(NUM, WIDTH, generator=generator)
    spread = 0.3 * torch.randn(NUM, WIDTH, generator=generator)
    even = torch.randn(K, WIDTH, generator=generator)[torch.randint(K, (NUM,), generator=generator)]
    chances = 1 / torch.arange(1, 201).float()  # the largest of 200 groups has a sixth of the vectors
    uneven = torch.randn(200, WIDTH, generator=generator)[torch.multinomial(chances, NUM, True, generator=generator)]
    return {"noise": noise, "1024 even": even + spread, "200 uneven": uneven + spread}


def matmul_rate() -> float:
    """FLOP/s."""
    left, right = torch.randn(4096, 4096), torch.randn(4096, 4096)
    (seconds, _), _ = best_of(lambda: left @ right, 5)
    return 2 * 4096**3 / seconds


def best_of(work: Callable[[], Result], repeats: int) -> tuple[tuple[float, float], Result]:
    """Wall-clock and processor seconds of the quickest run, and what the last one gave."""
    times = []
    while True:
        wall, processor = time.perf_counter(), time.process_time()
        result = work()
        times.append((time.perf_counter() - wall, time.process_time() - processor))
        if len(times) == repeats:
            return min(times), result


if __name__ == "__main__":
    main()
