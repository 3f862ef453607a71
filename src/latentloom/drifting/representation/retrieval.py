"""Nearest neighbours: do they share the class, and do their prompts and keyframes agree?"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs.randomness import step_generator

TOP = (1, 5, 10)
_ROWS_AT_ONCE = 512


def nearest_neighbours(vectors: Float[Tensor, "N D"], count: int) -> Int64[Tensor, "N _"]:
    """The rows of the nearest other vectors of each vector, nearest first; `count` of them, or all others.

    Raises:
        ConfigError: fewer than two vectors, which have no neighbours.
    """
    require_pairs(len(vectors), "samples")
    count = min(count, len(vectors) - 1)
    points = vectors.float() - vectors.float().mean(dim=0)  # far from the origin float32 has few digits for differences
    found = []
    for rows in torch.arange(len(points), device=points.device).split(_ROWS_AT_ONCE):
        distances = torch.cdist(points[rows], points)
        distances[torch.arange(len(rows)), rows] = torch.inf
        found.append(distances.topk(count, largest=False).indices)
    return torch.cat(found)


def require_pairs(number: int, what: str) -> None:
    """Return if there are at least two of `what`, so that they can be compared.

    Raises:
        ConfigError: there are fewer.
    """
    if number < 2:
        raise ConfigError(f"{number} {what}; at least 2 are compared, give more")


def class_consistency(
    labels: Int64[Tensor, "N"], neighbours: Int64[Tensor, "N K"], top: Sequence[int] = TOP
) -> dict[str, float]:
    """How often neighbours are of the query's class.

    Returns:
        Under "retrieval/...": for every k, top<k>, the share of the k nearest that are of the query's class, and
        any<k>, the share of queries with at least one such neighbour; chance, what random neighbours would reach.
    """
    is_same = labels[neighbours] == labels[:, None]
    found = {}
    for number in top:
        if number <= neighbours.shape[1]:
            found[f"retrieval/top{number}"] = float(is_same[:, :number].double().mean())
            found[f"retrieval/any{number}"] = float(is_same[:, :number].any(dim=1).double().mean())
    counts = torch.bincount(labels).double()
    found["retrieval/chance"] = float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))
    return found


def agreement(
    neighbours: Int64[Tensor, "N K"],
    texts: Float[Tensor, "N E"] | None,
    keyframes: Float[Tensor, "N F"] | None,
    *,
    peak: float | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """How alike retrieved neighbours are in prompt and keyframes, beside random pairs.

    Args:
        neighbours: see `nearest_neighbours`.
        texts: pooled prompts; None where there are none.
        keyframes: values of the keyframes, all in one row; None where there are none.
        peak: largest difference of two values, such as 2 for pixels from -1 to 1; without it no PSNR is given.
        seed: of the random pairs.

    Returns:
        Under "agreement/...": text_cosine, of prompts minus the mean prompt; keyframe_correlation, of keyframes minus
        the mean keyframes; keyframe_error, the mean squared error; keyframe_psnr in dB. "random/..." before them is the
        same of random pairs.
    """
    num, count = neighbours.shape
    shifts = torch.randint(1, num, (num, count), generator=step_generator(seed, 0, "random pairs"))
    others = (torch.arange(num).unsqueeze(1) + shifts) % num  # never itself
    return _of_pairs(neighbours.cpu(), texts, keyframes, peak) | {
        f"random/{name}": value for name, value in _of_pairs(others, texts, keyframes, peak).items()
    }


def _of_pairs(
    pairs: Int64[Tensor, "N K"],
    texts: Float[Tensor, "N E"] | None,
    keyframes: Float[Tensor, "N F"] | None,
    peak: float | None,
) -> dict[str, float]:
    found = {}
    if texts is not None:
        found["agreement/text_cosine"] = _mean_cosine(texts, pairs)
    if keyframes is not None:
        found["agreement/keyframe_correlation"] = _mean_cosine(keyframes, pairs)
        errors = torch.stack([(keyframes - keyframes[column]).square().mean(dim=1) for column in pairs.T], dim=1)
        found["agreement/keyframe_error"] = float(errors.double().mean())
        if peak is not None:
            tiny = torch.finfo(torch.float32).eps
            psnr = 10 * torch.log10(peak**2 / errors.double().clamp_min(tiny))
            found["agreement/keyframe_psnr"] = float(psnr.mean())
    return found


def _mean_cosine(values: Float[Tensor, "N D"], pairs: Int64[Tensor, "N K"]) -> float:
    directions = F.normalize(values.float() - values.float().mean(dim=0), dim=1)
    cosines = torch.stack([(directions * directions[column]).sum(dim=1) for column in pairs.T], dim=1)
    return float(cosines.double().mean())
