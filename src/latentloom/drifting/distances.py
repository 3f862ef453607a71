"""How far two sets of feature vectors are apart: the Fréchet distance (FD) and the kernel distance (KID)."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.runs.estimates import Estimate, resample

NUM_RESAMPLES = 200
_NORMAL_95 = 1.96
_ROWS_AT_ONCE = 1024


def frechet_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"]) -> float:
    """The squared Fréchet distance between Gaussians fitted to both sets: 0 for the same set, in squared feature units.

    It is biased upwards, the more the fewer samples there are: only compare figures from as many samples.

    Args:
        a, b: features, at least two rows each; fewer rows than features are fine.

    Raises:
        ShapeError: fewer than two rows, or not as many features in both.

    Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    _require_samples(a, b)
    return float(_frechet(a.double(), b.double(), _once(a), _once(b)))


def kernel_distance(a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, paired: bool = False) -> float:
    """The squared MMD with the kernel (x·y/D + 1)³: 0 on average for samples of one distribution.

    It is unbiased: its mean does not depend on the number of samples, and it can be negative. Its unit is that of the
    features, so that only figures from the same features compare.

    Args:
        a, b: features, at least two rows each.
        paired: row i of both belongs to one image, as where images are refined and compared with themselves. An image
            is then not compared with its own copy, which would pull the estimate below 0; what all images share
            cancels, so that it varies far less.

    Raises:
        ShapeError: fewer than two rows, or not as many features in both; for pairs, not as many rows.

    Source: Bińkowski et al. 2018, arXiv:1801.01401, section 4; for pairs Gretton et al. 2012, "A Kernel Two-Sample
    Test", Lemma 6, whose second form takes pairs.
    """
    _require_samples(a, b)
    _require_pairs(a, b, paired)
    distance = _paired_kernel if paired else _kernel
    return float(distance(a.double(), b.double(), _once(a), _once(b)))


def frechet_estimate(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, paired: bool = False, seed: int = 0
) -> Estimate:
    """`frechet_distance` with a 95 % interval from the spread over bootstrap resamples.

    Resampling adds to the bias of the distance, so that percentiles of the resamples would lie above the distance
    itself; their spread does not suffer from that, and is put around the distance. Resamples of a single image are
    left out, so that two images, of which no others remain, have an interval without width.

    Args:
        a, b: as in `frechet_distance`.
        paired: row i of both belongs to one image, so rows are drawn together.
        seed: of the resamples.
    """
    return _estimate(_frechet, frechet_distance(a, b), a, b, paired, seed, lowest=0.0)


def kernel_estimate(
    a: Float[Tensor, "N D"], b: Float[Tensor, "M D"], *, paired: bool = False, seed: int = 0
) -> Estimate:
    """`kernel_distance` with a 95 % interval from the spread over bootstrap resamples.

    As in `frechet_estimate`, resamples of a single image are left out.

    Args:
        a, b: as in `kernel_distance`.
        paired: row i of both belongs to one image, so rows are drawn together.
        seed: of the resamples.
    """
    distance = kernel_distance(a, b, paired=paired)
    return _estimate(_paired_kernel if paired else _kernel, distance, a, b, paired, seed, lowest=-torch.inf)


def kernel_difference(
    a: Sequence[Float[Tensor, "_ D"]], b: Sequence[Float[Tensor, "_ D"]], truth: Float[Tensor, "N D"], *, seed: int = 0
) -> Estimate:
    """How much farther `a` is from `truth` than `b` is, in `kernel_distance` of pairs; below 0, `a` is nearer.

    All sets are resampled together, so that what a resample does to both cancels: the interval is that of the
    difference, and far narrower than the distances' own.

    Args:
        a, b: features of two methods, one set for each training (seed) of a method; distances are averaged over them.
        truth: row i of every set belongs to its row i.
        seed: of the resamples.

    Raises:
        ShapeError: fewer than two rows, or sets of different shapes.
    """
    for features in (*a, *b):
        _require_samples(features, truth)
        _require_pairs(features, truth, True)
    exact = truth.double()

    def difference(times: Tensor) -> Tensor:
        of_a, of_b = (
            torch.stack([_paired_kernel(one.double(), exact, times, times) for one in sets]).mean(dim=0)
            for sets in (a, b)
        )
        return of_a - of_b

    value = float(difference(_once(truth)))
    times = resample(len(truth), NUM_RESAMPLES, seed)
    times = times[(times > 0).sum(dim=1) > 1].to(truth.device)
    reach = _NORMAL_95 * float(difference(times).std()) if len(times) > 1 else 0.0
    return Estimate(value, value - reach, value + reach)


def _estimate(
    distances: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    value: float,
    a: Tensor,
    b: Tensor,
    paired: bool,
    seed: int,
    lowest: float,
) -> Estimate:
    _require_pairs(a, b, paired)
    times_a = resample(len(a), NUM_RESAMPLES, seed)
    times_b = times_a if paired else resample(len(b), NUM_RESAMPLES, seed + 1)
    # few images: a resample may hold one of them alone, which has no variance and no pair
    is_usable = ((times_a > 0).sum(dim=1) > 1) & ((times_b > 0).sum(dim=1) > 1)
    if is_usable.sum() < 2:
        return Estimate(value, value, value)
    times_a, times_b = times_a[is_usable].to(a.device), times_b[is_usable].to(b.device)
    reach = _NORMAL_95 * float(distances(a.double(), b.double(), times_a, times_b).std())
    return Estimate(value, max(value - reach, lowest), value + reach)


def _frechet(a: Tensor, b: Tensor, times_a: Tensor, times_b: Tensor) -> Tensor:
    """FD of R pairs of sets; `times` [R, N] says how often each row is in each."""
    mean_a, root_a, variance_a = _gaussians(a, times_a)
    mean_b, root_b, variance_b = _gaussians(b, times_b)
    # tr (A B)^1/2 is the nuclear norm of A^1/2 B^1/2, which exists for singular A and B too
    overlap = torch.linalg.svdvals(root_a @ root_b).sum(dim=-1)
    return ((mean_a - mean_b).square().sum(dim=-1) + variance_a + variance_b - 2 * overlap).clamp_min(0)


def _gaussians(samples: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means [R, D], roots of the covariances [R, D, D] and total variances [R]."""
    num = len(samples)
    means = times @ samples / num
    covariances = []
    for row, mean in zip(times, means, strict=True):
        centred = samples - mean
        covariances.append((centred * row.unsqueeze(1)).T @ centred / (num - 1))
    covariance = torch.stack(covariances)
    values, vectors = torch.linalg.eigh(covariance)
    # rounding makes zero eigenvalues slightly negative
    root = (vectors * values.clamp_min(0).sqrt().unsqueeze(-2)) @ vectors.mT
    return means, root, covariance.diagonal(dim1=-2, dim2=-1).sum(dim=-1)


def _kernel(a: Tensor, b: Tensor, times_a: Tensor, times_b: Tensor) -> Tensor:
    """KID of R pairs of sets; a row that is in a set twice is never compared with itself."""
    across = _kernel_sums(a, b, times_a, times_b) / (times_a.sum(dim=1) * times_b.sum(dim=1))
    return _within(a, times_a) + _within(b, times_b) - 2 * across


def _paired_kernel(a: Tensor, b: Tensor, times_a: Tensor, times_b: Tensor) -> Tensor:
    """KID of R sets of pairs, over pairs of different images; `times_b` is `times_a`."""
    own = times_a.square() @ ((a * b).mean(dim=1) + 1) ** 3
    num_pairs = times_a.sum(dim=1) ** 2 - times_a.square().sum(dim=1)
    across = (_kernel_sums(a, b, times_a, times_b) - own) / num_pairs
    return _within(a, times_a) + _within(b, times_b) - 2 * across


def _within(samples: Tensor, times: Tensor) -> Tensor:
    """Means of the kernel over the pairs of different rows of each set."""
    same = times.square() @ (samples.square().mean(dim=1) + 1) ** 3
    num_pairs = times.sum(dim=1) ** 2 - times.square().sum(dim=1)
    return (_kernel_sums(samples, samples, times, times) - same) / num_pairs


def _kernel_sums(a: Tensor, b: Tensor, times_a: Tensor, times_b: Tensor) -> Tensor:
    sums = torch.zeros(len(times_a), dtype=a.dtype, device=a.device)
    for rows, times in zip(a.split(_ROWS_AT_ONCE), times_a.split(_ROWS_AT_ONCE, dim=1), strict=True):
        kernel = (rows @ b.T / a.shape[1] + 1) ** 3
        sums += (times @ kernel * times_b).sum(dim=1)
    return sums


def _once(samples: Tensor) -> Tensor:
    return torch.ones(1, len(samples), dtype=torch.float64, device=samples.device)


def _require_samples(a: Tensor, b: Tensor) -> None:
    if min(len(a), len(b)) < 2:
        raise ShapeError(f"a distance between sets of {len(a)} and {len(b)} samples; give two or more of each")


def _require_pairs(a: Tensor, b: Tensor, paired: bool) -> None:
    if paired and len(a) != len(b):
        raise ShapeError(f"{len(a)} and {len(b)} samples are not pairs; give as many of both, or paired=False")
