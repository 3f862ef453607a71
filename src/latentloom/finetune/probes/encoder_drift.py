"""Whether a tuned text encoder kept its geometry: what prompts become in it, beside what the base makes of them.

A DiT that was trained on the base reads the tuned encoder well as long as tokens keep their directions and lengths, and
prompts keep their neighbours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.tensors import TextEmbeddings

NUM_NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class EncoderDrift:
    """B prompts in the base and in the tuned encoder, one value per prompt.

    Attributes:
        token_cosine: cosine of the same token in both, the mean over the prompt's tokens.
        lowest_token_cosine: the lowest of them.
        pooled_cosine: cosine of the prompt's mean token in both.
        relative_change: length of the difference of all tokens over the length of all tokens in the base.
        norm_change: mean length of the tokens in the tuned encoder over that in the base, less 1.
        overlap: share of the prompt's nearest neighbours in the base that are nearest neighbours in the tuned encoder
            too. Neighbours are told by the cosine of mean tokens, less the mean over all prompts, which all share.
        num_neighbours: how many neighbours a prompt has; 0, and no overlap, for fewer than three prompts.
    """

    token_cosine: Float[Tensor, "B"]
    lowest_token_cosine: Float[Tensor, "B"]
    pooled_cosine: Float[Tensor, "B"]
    relative_change: Float[Tensor, "B"]
    norm_change: Float[Tensor, "B"]
    overlap: Float[Tensor, "B"]
    num_neighbours: int


@torch.no_grad()
def encoder_drift(base: TextEmbeddings, tuned: TextEmbeddings, num_neighbours: int = NUM_NEIGHBOURS) -> EncoderDrift:
    """How far the same prompts are apart in two encoders, in float32.

    Args:
        base, tuned: the prompts, in one order, with at least one token each.
        num_neighbours: at most; of B prompts never more than (B - 1) / 2, beyond which overlap comes by itself.

    Raises:
        ShapeError: the prompts differ in number, tokens or width.
        ConfigError: fewer than one neighbour asked for.
    """
    if num_neighbours < 1:
        raise ConfigError(f"{num_neighbours} neighbours; give 1 or more")
    if base.dim != tuned.dim or base.lengths.tolist() != tuned.lengths.tolist():
        raise ShapeError(
            f"{len(base)} prompts of {len(base.tokens)} tokens and width {base.dim} against {len(tuned)} of "
            f"{len(tuned.tokens)} and {tuned.dim}; give the same prompts in both encoders"
        )
    sides = [[rows.float() for rows in side.to("cpu").to_list()] for side in (base, tuned)]
    pairs = list(zip(*sides, strict=True))
    cosines = [_cosines(first, second) for first, second in pairs]
    pooled, pooled_tuned = (torch.stack([rows.mean(dim=0) for rows in side]) for side in sides)
    count = min(num_neighbours, (len(base) - 1) // 2)
    return EncoderDrift(
        token_cosine=torch.stack([each.mean() for each in cosines]),
        lowest_token_cosine=torch.stack([each.min() for each in cosines]),
        pooled_cosine=_cosines(pooled, pooled_tuned),
        relative_change=torch.stack([(second - first).norm() / first.norm() for first, second in pairs]),
        norm_change=torch.stack([second.norm(dim=1).mean() / first.norm(dim=1).mean() - 1 for first, second in pairs]),
        overlap=neighbour_overlap(pooled, pooled_tuned, count) if count else torch.ones(len(base)),
        num_neighbours=count,
    )


def neighbour_overlap(first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], count: int) -> Float[Tensor, "B"]:
    """Share of each row's nearest neighbours among the others that it keeps from one set of rows to the other.

    Args:
        first, second: the same things in two spaces; nearness is the cosine after the mean row is taken off.
        count: neighbours of each, fewer than B.
    """
    kept = _are_neighbours(first, count) & _are_neighbours(second, count)
    return kept.sum(dim=1) / count


def _are_neighbours(rows: Float[Tensor, "B D"], count: int) -> Bool[Tensor, "B B"]:
    centred = rows - rows.mean(dim=0)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    nearness = (unit @ unit.mT).fill_diagonal_(-torch.inf)
    # a stable order, so that of equally near rows both spaces choose the same
    nearest = nearness.sort(dim=1, descending=True, stable=True).indices[:, :count]
    return torch.zeros_like(nearness, dtype=torch.bool).scatter_(1, nearest, value=True)


def _cosines(first: Float[Tensor, "N D"], second: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
    """Cosine of each pair of rows; exactly 1 for equal rows."""
    lengths = first.norm(dim=1) * second.norm(dim=1)
    cosines = (first * second).sum(dim=1) / lengths.clamp_min(torch.finfo(torch.float32).tiny)
    return cosines.clamp(-1, 1).masked_fill((first == second).all(dim=1), 1.0)
