"""How far two prompts are apart before and after the model's text embedder, on the tokens that they have.

Positions are compared over the union of true tokens: as many rows as the longer prompt has. Where the shorter one has
no token left, it stands as what the model reads there, zeros before the embedder and the pad vector after it, so a
token that only one prompt has counts in full. Position by position, one inserted word shifts all that follow; the best
match does without order.

Figures over 512 padded rows are reported too, marked as diluted: the padding rows of two prompts are equal and say "no
difference" hundreds of times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.steering.embeddings.difference import relative_difference
from latentloom.steering.projection import pad_vector, project
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.text_encoder import MAX_TOKENS

THRESHOLD = 0.01
"""Of the document's figure: a value counts as changed when it differs by more. It depends on the embeddings' scale."""


@dataclass(frozen=True, eq=False)
class Figures:
    """How far prompts are apart, one value per pair.

    Args:
        relative_l2: ||a - b|| / sqrt(||a|| ||b||) over the union of true tokens.
        cosine_mean, cosine_min, cosine_p10: cosines between tokens at one position. A token against a zero row has
            cosine 0; two zero rows have cosine 1.
        norm_ratio: mean length of the second prompt's tokens over that of the first's.
        best_match: each token's highest cosine among all tokens of the other prompt, the mean over both directions;
            several tokens may choose the same one, so prompts of different lengths can match completely.
    """

    relative_l2: Float[Tensor, "B"]
    cosine_mean: Float[Tensor, "B"]
    cosine_min: Float[Tensor, "B"]
    cosine_p10: Float[Tensor, "B"]
    norm_ratio: Float[Tensor, "B"]
    best_match: Float[Tensor, "B"]

    def to_json(self) -> dict[str, list[float]]:
        """Every figure as a list, one value per pair."""
        return {item.name: getattr(self, item.name).tolist() for item in fields(self)}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Prompt pairs compared at one place: before the text embedder, or after it.

    Args:
        figures: of the rows as they are.
        minus_pad: of the rows less the pad vector, that is of what tells them from padding; None where it is zero.
        share_changed: of the values on the union of true tokens, those that differ by more than `THRESHOLD`.
        diluted_share_changed: the same over 512 rows, the document's "difference": exactly `share_changed` times the
            rows of the union over 512.
        diluted_relative_l2: relative L2 over 512 rows. Padding adds nothing to the difference but, once the embedder
            has turned zeros into the pad vector, much to the lengths.
        lengths: true tokens of the first and of the second prompt.
    """

    figures: Figures
    minus_pad: Figures | None
    share_changed: Float[Tensor, "B"]
    diluted_share_changed: Float[Tensor, "B"]
    diluted_relative_l2: Float[Tensor, "B"]
    lengths: Int[Tensor, "B 2"]

    def to_json(self) -> dict[str, Any]:
        """All figures; those over padded rows stand under "diluted"."""
        diluted = {
            "share_changed": self.diluted_share_changed.tolist(),
            "relative_l2": self.diluted_relative_l2.tolist(),
            "rows": MAX_TOKENS,
        }
        return {
            "lengths": self.lengths.tolist(),
            **self.figures.to_json(),
            "share_changed": self.share_changed.tolist(),
            "threshold": THRESHOLD,
            "minus_pad": None if self.minus_pad is None else self.minus_pad.to_json(),
            "diluted": diluted,
        }


@dataclass(frozen=True, eq=False)
class Bottleneck:
    """Prompt pairs before and after the model's text embedder.

    Args:
        raw: encoder rows.
        projected: what the blocks read.
    """

    raw: Comparison
    projected: Comparison

    @property
    def ratio(self) -> Float[Tensor, "B"]:
        """Relative L2 after over before, on true tokens: below 1 the embedder brings the prompts closer together."""
        return self.projected.figures.relative_l2 / self.raw.figures.relative_l2

    @property
    def ratio_minus_pad(self) -> Float[Tensor, "B"]:
        """The same with the pad vector taken off the projected rows."""
        figures = self.projected.minus_pad or self.projected.figures
        return figures.relative_l2 / self.raw.figures.relative_l2

    def to_json(self) -> dict[str, Any]:
        """Both comparisons and their ratios."""
        ratios = {"ratio": self.ratio.tolist(), "ratio_minus_pad": self.ratio_minus_pad.tolist()}
        return {"raw": self.raw.to_json(), "projected": self.projected.to_json(), **ratios}


@torch.no_grad()
def compare(first: TextEmbeddings, second: TextEmbeddings, pad: Float[Tensor, "D"] | None = None) -> Comparison:
    """How far each prompt of `first` is from its partner in `second`, in float32; see the module's text for the rules.

    Args:
        first, second: B prompts each, without padding.
        pad: what a padding row is at this place, see `projection.pad_vector`; None for zeros, as the encoder's are.

    Raises:
        ShapeError: different numbers of prompts, different widths, or a prompt of more than 512 tokens.
    """
    if len(first) != len(second) or first.dim != second.dim:
        raise ShapeError(
            f"{len(first)} prompts of width {first.dim} against {len(second)} of width {second.dim}; "
            "give as many of the same width"
        )
    longest = max([*first.lengths.tolist(), *second.lengths.tolist()], default=0)
    if longest > MAX_TOKENS:
        raise ShapeError(f"a prompt of {longest} tokens; the model reads {MAX_TOKENS}, cut it")
    sides = [[rows.float() for rows in side.to(first.device).to_list()] for side in (first, second)]
    fill = torch.zeros(first.dim, device=first.device) if pad is None else pad.to(first.device).float()
    pairs = list(zip(*sides, strict=True))
    on_union = [_on_union(a, b, fill) for a, b in pairs]
    changed = _per_pair([float((a - b).abs().gt(THRESHOLD).sum()) for a, b in on_union], first)
    lengths = torch.stack([first.lengths, second.lengths.to(first.device)], dim=1)
    values_on_union = lengths.amax(dim=1) * first.dim
    minus_pad = None
    if pad is not None:
        minus_pad = _figures([(a - fill, b - fill) for a, b in pairs], torch.zeros_like(fill), first)
    return Comparison(
        figures=_figures(pairs, fill, first),
        minus_pad=minus_pad,
        share_changed=changed / values_on_union.clamp_min(1),
        diluted_share_changed=changed / (MAX_TOKENS * first.dim),
        diluted_relative_l2=_relative_l2([_on_union(a, b, fill, MAX_TOKENS) for a, b in pairs], first),
        lengths=lengths,
    )


def measure_bottleneck(
    pipeline: WanPipeline,
    first: list[str] | TextEmbeddings,
    second: list[str] | TextEmbeddings,
    transformer: WanTransformer3DModel | None = None,
) -> Bottleneck:
    """How far prompts are apart as the encoder gives them, and as the blocks read them.

    Args:
        pipeline: the model.
        first, second: the prompts, as texts or encoder rows.
        transformer: whose text embedder is meant; the (high-noise) transformer's where None.

    Raises:
        ShapeError, ConfigError: prompts that do not pair or are not for this model.
    """
    transformer = pipeline.transformer if transformer is None else transformer
    raw = [pipeline.encode(side) for side in (first, second)]
    rows = [project(transformer, side.to(dtype=torch.float32)) for side in raw]
    return Bottleneck(compare(raw[0], raw[1]), compare(rows[0], rows[1], pad_vector(transformer)))


Pair = tuple[Tensor, Tensor]


def _figures(pairs: Sequence[Pair], fill: Float[Tensor, "D"], like: TextEmbeddings) -> Figures:
    on_union = [_on_union(a, b, fill) for a, b in pairs]
    cosines = [_position_cosines(a, b) for a, b in on_union]

    def each(measure: Callable[[Tensor], Tensor]) -> Float[Tensor, "B"]:
        return _per_pair([float(measure(of_pair)) for of_pair in cosines], like)

    return Figures(
        relative_l2=_relative_l2(on_union, like),
        cosine_mean=each(torch.mean),
        cosine_min=each(torch.min),
        cosine_p10=each(lambda of_pair: of_pair.quantile(0.1)),
        norm_ratio=_per_pair([_norm_ratio(a, b) for a, b in pairs], like),
        best_match=_per_pair([_best_match(a, b) for a, b in pairs], like),
    )


def _on_union(a: Tensor, b: Tensor, fill: Float[Tensor, "D"], num_rows: int | None = None) -> Pair:
    """Both prompts at the longer one's length, or at `num_rows`; the shorter one is filled up."""
    num_rows = max(len(a), len(b)) if num_rows is None else num_rows
    first, second = (torch.cat([rows, fill.expand(num_rows - len(rows), -1)]) for rows in (a, b))
    return first, second


def _relative_l2(pairs: Sequence[Pair], like: TextEmbeddings) -> Float[Tensor, "B"]:
    if not pairs:
        return _per_pair([], like)
    first, second = (TextEmbeddings.from_list(list(side)) for side in zip(*pairs, strict=True))
    return relative_difference(first, second)


def _position_cosines(a: Float[Tensor, "L D"], b: Float[Tensor, "L D"]) -> Float[Tensor, "_"]:
    if len(a) == 0:
        return a.new_ones(1)  # two empty prompts are the same prompt
    cosines = (_unit(a) * _unit(b)).sum(dim=1).clamp(-1, 1)
    return cosines.masked_fill((a == b).all(dim=1), 1.0)  # two zero rows too


def _best_match(a: Float[Tensor, "L D"], b: Float[Tensor, "M D"]) -> float:
    if len(a) == 0 or len(b) == 0:
        return float(len(a) == len(b))
    cosines = (_unit(a) @ _unit(b).mT).clamp(-1, 1)
    both_zero = (a == 0).all(dim=1)[:, None] & (b == 0).all(dim=1)
    cosines = cosines.masked_fill(both_zero, 1.0)
    return float((cosines.amax(dim=1).mean() + cosines.amax(dim=0).mean()) / 2)


def _norm_ratio(a: Float[Tensor, "L D"], b: Float[Tensor, "M D"]) -> float:
    first, second = (rows.norm(dim=1).mean() if len(rows) else rows.new_zeros(()) for rows in (a, b))
    return 1.0 if first == second else float(second / first)


def _unit(rows: Float[Tensor, "L D"]) -> Float[Tensor, "L D"]:
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _per_pair(values: Sequence[float], like: TextEmbeddings) -> Float[Tensor, "B"]:
    return torch.tensor(list(values), dtype=torch.float32, device=like.device)
