"""The pooled correction of many prompts, three ways: fused (no [tokens, D] array is made), packed, padded.

Training needs of a correction only its mean over each prompt and its length per token. The three ways give the same
numbers; fused is what training uses, the others are the plain forms it is checked and timed against.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.delta.model import EmbeddingDelta, cap_scale, gate_features
from latentloom.delta.pooling import mean_per_prompt, pool
from latentloom.tensors import TextEmbeddings

Method = Literal["fused", "packed", "padded"]
_LAYER_NORM_EPS = 1e-5  # of torch.nn.functional.layer_norm, which the model calls


class PooledDelta(NamedTuple):
    """Of each prompt: the mean correction of its tokens, and the mean of |delta|^2 / |e|^2."""

    mean: Float[Tensor, "B D"]
    square: Float[Tensor, "B"]


@dataclass(frozen=True, eq=False)
class PromptConstants:
    """What of a set of prompts stays the same all through training, computed once.

    Args:
        embeddings: the prompts, float32.
        means, rstds: of each token's channels, for its layer norm.
        squares: |e|^2 of each token.
        pooled: mean token of each prompt.
        features: what the gate sees.
    """

    embeddings: TextEmbeddings
    means: Float[Tensor, "N"]
    rstds: Float[Tensor, "N"]
    squares: Float[Tensor, "N"]
    pooled: Float[Tensor, "B D"]
    features: Float[Tensor, "B F"]

    @classmethod
    def of(cls, embeddings: TextEmbeddings) -> "PromptConstants":
        """The constants of prompts in any dtype."""
        embeddings = embeddings.to(dtype=torch.float32)
        variances, means = torch.var_mean(embeddings.tokens, dim=1, correction=0)
        squares = embeddings.tokens.square().sum(dim=1)
        rstds = (variances + _LAYER_NORM_EPS).rsqrt()
        return cls(embeddings, means, rstds, squares, pool(embeddings), gate_features(embeddings))

    def batches(self, parts: Sequence[Int[Tensor, "_"]]) -> Iterator["PromptConstants"]:
        """Those of the prompts of each part in turn, to be done with before the next, which overwrites the tokens.

        Memory that is new to the process costs several times what the copy itself does.
        """
        most = max((int(self.embeddings.lengths[rows].sum()) for rows in parts), default=0)
        room = self.embeddings.tokens.new_empty(most, self.embeddings.dim)
        for rows in parts:
            yield self.batch(rows, room)

    def batch(self, rows: Int[Tensor, "R"], room: Float[Tensor, "M D"] | None = None) -> "PromptConstants":
        """Those of some prompts, in the order asked for; their tokens in the first rows of `room` if it is given."""
        lengths = self.embeddings.lengths[rows]
        ends = self.embeddings.lengths.cumsum(0)[rows]
        starts = torch.repeat_interleave(ends - lengths.cumsum(0), lengths)
        tokens = starts + torch.arange(int(lengths.sum()), device=rows.device)
        out = None if room is None else room[: len(tokens)]
        embeddings = TextEmbeddings(torch.index_select(self.embeddings.tokens, 0, tokens, out=out), lengths)
        per_token = (self.means[tokens], self.rstds[tokens], self.squares[tokens])
        # index_select copies rows several times faster than an index in brackets
        per_prompt = (self.pooled.index_select(0, rows), self.features.index_select(0, rows))
        return PromptConstants(embeddings, *per_token, *per_prompt)

    def weighted_mean(self, weights: Float[Tensor, "N"]) -> Float[Tensor, "B D"]:
        """The mean of weight times token, without the weighted tokens ever being stored; a gradient for the weights."""
        lengths = self.embeddings.lengths
        return F.embedding_bag(
            torch.arange(len(weights), device=weights.device),
            self.embeddings.tokens,
            lengths.cumsum(0) - lengths,
            mode="sum",
            per_sample_weights=weights / torch.repeat_interleave(lengths, lengths),
        )


def pooled_delta(
    adapter: EmbeddingDelta, prompts: PromptConstants, method: Method = "fused", pad_to: int | None = None
) -> PooledDelta:
    """The corrections of every prompt, pooled; not gated.

    Args:
        adapter: gradients flow to its down, up and bias.
        prompts: a batch.
        method: how to compute it.
        pad_to: for `padded`, the number of positions; the longest prompt's when None.
    """
    if method == "fused":
        return _fused(adapter, prompts)
    if method == "packed":
        return _packed(adapter, prompts)
    return _padded(adapter, prompts, pad_to)


def _fused(adapter: EmbeddingDelta, prompts: PromptConstants) -> PooledDelta:
    """One product of all tokens with [down; up^T; bias], then everything in the rank's dimension.

    With h = [down (LN(e) - c), 1], U = [up | bias] and u = U^T e: the component along the token is a e with
    a = h.u / |e|^2, the rest is as long as |z|^2 - a^2 |e|^2 with |z|^2 = h^T (U^T U) h, and the mean of the shortened
    rest is U mean(s h) - mean(s a e). The weights lie in rows because their gradient is then the faster product.
    """
    rank, tokens = adapter.config.rank, prompts.embeddings.tokens
    spread = torch.cat([adapter.up.T, adapter.bias.unsqueeze(0)])
    lowered, along_spread = (tokens @ torch.cat([adapter.down, spread]).T).split([rank, rank + 1], dim=1)
    shift = torch.outer(prompts.means, adapter.down.sum(dim=1))
    inner = (lowered - shift) * prompts.rstds.unsqueeze(1) - adapter.down @ adapter.centre
    inner = torch.cat([inner, inner.new_ones(len(inner), 1)], dim=1)
    squares = (inner @ (spread @ spread.T) * inner).sum(dim=1)
    safe = _divisors(prompts.squares)
    along = (inner * along_spread).sum(dim=1) / safe if adapter.config.orthogonal else None
    if along is not None:
        squares = (squares - along.square() * prompts.squares).clamp_min(0)  # rounding can go below
    scale = cap_scale(squares, adapter.limits(prompts.squares.sqrt()))
    mean = mean_per_prompt(scale.unsqueeze(1) * inner, prompts.embeddings) @ spread
    if along is not None:
        mean = mean - prompts.weighted_mean(scale * along)
    relative = (scale.square() * squares / safe).unsqueeze(1)
    return PooledDelta(mean, mean_per_prompt(relative, prompts.embeddings).squeeze(1))


def _packed(adapter: EmbeddingDelta, prompts: PromptConstants) -> PooledDelta:
    deltas = adapter.deltas(prompts.embeddings.tokens)
    safe = _divisors(prompts.squares)
    relative = (deltas.square().sum(dim=1) / safe).unsqueeze(1)
    square = mean_per_prompt(relative, prompts.embeddings).squeeze(1)
    return PooledDelta(mean_per_prompt(deltas, prompts.embeddings), square)


def _padded(adapter: EmbeddingDelta, prompts: PromptConstants, pad_to: int | None) -> PooledDelta:
    """As the document's source did it: corrections of all positions, those of the padding then masked."""
    embeddings = prompts.embeddings
    length = pad_to or max(1, int(embeddings.lengths.max()))
    padded, mask = embeddings.padded(length), embeddings.mask(length)
    deltas = adapter.deltas(padded.flatten(0, 1)).view(padded.shape) * mask.unsqueeze(2)
    safe = _divisors(padded.square().sum(dim=2))
    count = embeddings.lengths.clamp_min(1)
    square = (deltas.square().sum(dim=2) / safe * mask).sum(dim=1) / count
    return PooledDelta(deltas.sum(dim=1) / count.unsqueeze(1), square)


def _divisors(squares: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Squared token lengths to divide by; what is relative to a token of zeros counts as 0."""
    return squares.masked_fill(squares == 0, torch.inf)
