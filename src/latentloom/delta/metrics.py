"""Figures about pooled prompts (computed in float64) and their tokens (in float32) before and after an adjustment.

A pooled prompt is the mean of its tokens. B prompts of D channels; row i of one side belongs to row i of the other.
"""

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.delta.pooling import pool
from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

NUM_NEIGHBOURS = 10
_QUERIES_AT_ONCE = 1024
# equal vectors can come out of two tiles of one matrix product a few units of rounding apart
_TIE = 1e-9
_ROUNDING = 1e-12  # relative; far above float64's, far below float32's


def cosines(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """Cosine of the angle between row i of one side and row i of the other; 0 where a row is zero."""
    return (_unit(a) * _unit(b)).sum(dim=1).clamp(-1, 1)


def centred_cosines(
    a: Float[Tensor, "B D"], b: Float[Tensor, "B D"], centre_a: Float[Tensor, "D"], centre_b: Float[Tensor, "D"]
) -> Float[Tensor, "B"]:
    """Cosines after `centre_a` is subtracted from every row of `a` and `centre_b` from every row of `b`.

    The tokens of many encoders share a large common part, and with it every cosine is near 1; this takes it away. The
    centres are means over the *training* pairs: a mean over the rows themselves would make each depend on the others.
    """
    return cosines(a.double() - centre_a.double(), b.double() - centre_b.double())


def cosine_distances(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, "B"]:
    """1 - cosine per row, without its cancellation: exactly 0 for equal rows, and right for 1e-12 too.

    Two zero rows are equal; a zero row and another are at distance 1.
    """
    ours, theirs = _unit(a), _unit(b)
    apart = (ours - theirs).square().sum(dim=1) / 2
    return torch.where(ours.any(dim=1) != theirs.any(dim=1), 1.0, apart).clamp(0, 2)


def retrieval_ranks(
    queries: Float[Tensor, "B D"], targets: Float[Tensor, "B D"], same: Sequence[Hashable]
) -> Int[Tensor, "B"]:
    """The place of the right target of each query when all targets are sorted by cosine; 1 is the best.

    A wrong target with the same cosine stands before the right one. Of several right targets the best counts.

    Args:
        queries, targets: pooled prompts; target i is right for query i, and so are the targets that are
        same: as it; one label per target, equal where targets are one prompt.
    """
    if len(same) != len(targets):
        raise ShapeError(f"{len(same)} labels for {len(targets)} targets; give one label per target")
    numbers: dict[Hashable, int] = {}
    labels = torch.tensor([numbers.setdefault(label, len(numbers)) for label in same], device=targets.device)
    unit_targets = _unit(targets).T
    ranks = []
    for rows in torch.arange(len(queries), device=queries.device).split(_QUERIES_AT_ONCE):
        scores = _unit(queries[rows]) @ unit_targets
        right = labels[rows].unsqueeze(1) == labels
        best = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + (~right & (scores >= best - _TIE)).sum(dim=1))
    return torch.cat(ranks) if ranks else labels


def linear_cka(a: Float[Tensor, "B D"], b: Float[Tensor, "B E"]) -> float | None:
    """How alike the two sets of vectors lie, 0 to 1: no rotation, common scale or shift of either changes it.

    None where it is not defined: all rows of a side are equal, as with a single row.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", equation 5.
    """
    first, second = (side.double() - side.double().mean(dim=0) for side in (a, b))
    if len(a) < max(a.shape[1], b.shape[1]):  # the smaller of two products that give the same three sums
        gram, other = first @ first.T, second @ second.T
        common, own, theirs = (gram * other).sum(), gram.square().sum(), other.square().sum()
    else:
        common, own, theirs = ((x.T @ y).square().sum() for x, y in ((first, second), (first, first), (second, second)))
    # what rounding leaves of equal rows after centring is not a direction
    if any(kept.sqrt() <= _ROUNDING**2 * side.double().square().sum() for kept, side in ((own, a), (theirs, b))):
        return None
    return min(float(common / (own * theirs).sqrt()), 1.0)


def neighbour_overlap(
    before: Float[Tensor, "B D"], after: Float[Tensor, "B E"], num_neighbours: int = NUM_NEIGHBOURS
) -> float | None:
    """The mean share of each prompt's nearest others, by cosine, that are still nearest afterwards.

    Args:
        before, after: the same prompts.
        num_neighbours: at most half of the others count: among all of them nothing could change.

    Returns:
        None for fewer than three prompts.
    """
    count = _num_neighbours(len(before), num_neighbours)
    if count < 1:
        return None
    near, still_near = _neighbours(before, count), _neighbours(after, count)
    return float((near & still_near).sum(dim=1).double().mean() / count)


def norm_ratios(before: Float[Tensor, "N D"], after: Float[Tensor, "N D"]) -> Float[Tensor, "M"]:
    """The length of each row afterwards over its length before; rows that were zero are left out."""
    length = before.float().norm(dim=1).double()
    kept = length > 0
    return after.float().norm(dim=1)[kept].double() / length[kept]


def rounding_errors(embeddings: TextEmbeddings) -> tuple[Float[Tensor, "B"], Float[Tensor, "N"]]:
    """What bfloat16 makes of embeddings: cosine distance per pooled prompt, and error per token over its length.

    Args:
        embeddings: in float32; zero tokens have no error.
    """
    rounded = TextEmbeddings(embeddings.tokens.bfloat16().float(), embeddings.lengths)
    error = (rounded.tokens - embeddings.tokens).norm(dim=1).double()  # the difference is exact in float32
    length = embeddings.tokens.norm(dim=1).double()
    return cosine_distances(pool(embeddings), pool(rounded)), error / length.clamp_min(torch.finfo(torch.float64).tiny)


def _num_neighbours(num_prompts: int, asked: int) -> int:
    return min(asked, (num_prompts - 1) // 2)


def _neighbours(vectors: Tensor, count: int) -> Tensor:
    """True at [i, j] where j is one of the `count` nearest others of i."""
    unit = _unit(vectors)
    scores = (unit @ unit.T).fill_diagonal_(-torch.inf)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(count, dim=1).indices, True)


def _unit(vectors: Tensor) -> Tensor:
    # a zero vector stays zero
    vectors = vectors.double()
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
