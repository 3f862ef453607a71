"""Measures what adjustments do to held-out pairs: how near they come to the rewrite, and what they do to rewrites."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.delta import metrics
from latentloom.delta.bootstrap import NUM_RESAMPLES, Estimate, estimate, estimates
from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.evaluation import Bucket, Evaluation, GateBucket, GateOutcome, Outcome, Rounding
from latentloom.delta.pooling import pool
from latentloom.errors import ConfigError, LatentLoomError, ShapeError
from latentloom.runs import track
from latentloom.tensors import TextEmbeddings

Adjust = Callable[[TextEmbeddings], TextEmbeddings]
Gate = Callable[[TextEmbeddings], Tensor]

#: Tokens of a prompt, both ends included. A prompt without tokens has a bucket of its own.
BUCKETS: dict[str, tuple[int, float]] = {
    "0": (0, 0),
    "1-4": (1, 4),
    "5-8": (5, 8),
    "9-16": (9, 16),
    "17-32": (17, 32),
    "33-64": (33, 64),
    "65+": (65, float("inf")),
}
SMALLEST_GAIN = 1e-6  # a smaller change of a cosine is float32's rounding and no gain
_PROMPTS_AT_ONCE = 128


@torch.no_grad()
def evaluate_adjustments(
    adjustments: Mapping[str, Adjust],
    test: PairEmbeddings,
    centre_base: Float[Tensor, "D"],
    centre_rewritten: Float[Tensor, "D"],
    gates: Mapping[str, Gate] | None = None,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Evaluation:
    """Measure adjustments on pairs that no training has seen, all in float32 and on the same pairs.

    "Centred" cosines take the training mean of the *rewritten* prompts from both sides, the adjusted prompt and the
    rewrite: the adjusted prompt stands where a rewrite would, so a perfect adjustment is at 1 and a constant shift
    counts as a gain. `Evaluation.shifted` is how far such a shift gets: it takes from either side its own mean.

    Args:
        adjustments: by name, in the order of tables; the first is the identity.
        test: held-out pairs, on the device of the adjustments.
        centre_base, centre_rewritten: means of the training pairs' pooled prompts.
        gates: by adjustment's name, how far it opens for each prompt, [B] in 0..1.
        seed, num_resamples: of the bootstrap over pairs; retrieval resamples the queries, its targets stay.

    Raises:
        ConfigError: the first adjustment is not the identity, or a gate belongs to no adjustment.
        ShapeError: there are no pairs, or an adjustment changes lengths or width.
        LatentLoomError: an adjustment or a gate gives NaN or infinities.
    """
    _check(adjustments, test, gates or {})
    draw = _Draw(seed, num_resamples)
    base, rewritten = _in_float32(test.base), _in_float32(test.rewritten)
    goal = _Goal(pool(rewritten).cpu(), centre_rewritten.cpu(), test.rewrite_labels())
    outcomes: dict[str, Outcome] = {}
    for name, adjust in track(adjustments.items(), "evaluating"):
        moved, kept = _run(name, adjust, base, True), _run(name, adjust, rewritten, False)
        if not outcomes and (moved.changed or kept.changed):
            raise ConfigError(f"the first adjustment is {name!r} and changes prompts; give the identity first")
        first = next(iter(outcomes.values()), None)
        outcomes[name] = _outcome(moved, kept, goal, first, base.lengths.cpu(), draw)
    return Evaluation(
        outcomes,
        _differences(outcomes, draw),
        {name: _gate_outcome(name, gate, base, rewritten, draw) for name, gate in (gates or {}).items()},
        draw(metrics.centred_cosines(pool(base).cpu(), goal.pooled, centre_base.cpu(), goal.centre)),
        base.lengths.cpu(),
        test.pairs,
        seed,
        num_resamples,
    )


@dataclass(frozen=True)
class _Draw:
    """Estimates from the resamples of one evaluation."""

    seed: int
    num_resamples: int

    def __call__(self, values: Tensor) -> Estimate:
        return estimate(values, self.seed, self.num_resamples)

    def all(self, figures: Mapping[str, Tensor]) -> dict[str, Estimate]:
        return estimates(figures, self.seed, self.num_resamples)


@dataclass(frozen=True, eq=False)
class _Goal:
    pooled: Float[Tensor, "B D"]
    centre: Float[Tensor, "D"]
    labels: list[Hashable]


@dataclass(frozen=True, eq=False)
class _Tokens:
    """What the report says of tokens, for some prompts."""

    norm_ratios: Float[Tensor, "_"]
    rounding_distances: Float[Tensor, "B"]
    rounding_errors: Float[Tensor, "N"]
    change: float
    rounding: float


@dataclass(frozen=True, eq=False)
class _Adjusted:
    """What remains of an adjustment's output when its tokens are gone; `tokens` one per batch, or none if not asked."""

    before: Float[Tensor, "B D"]
    after: Float[Tensor, "B D"]
    changed: bool
    tokens: list[_Tokens]


def _run(name: str, adjust: Adjust, embeddings: TextEmbeddings, look_at_tokens: bool) -> _Adjusted:
    # some prompts at a time: a long list of prompts must not need several copies of all its tokens
    before, after, changed, tokens = [], [], False, []
    for start in range(0, len(embeddings), _PROMPTS_AT_ONCE):
        batch = embeddings[start : start + _PROMPTS_AT_ONCE]
        output = adjust(batch).to(dtype=torch.float32)
        if output.dim != batch.dim or not torch.equal(output.lengths, batch.lengths):
            raise ShapeError(f"the adjustment {name!r} changes the number of tokens or their width; it may not")
        moved = not torch.equal(output.tokens, batch.tokens)
        before.append(pool(batch))
        # sums on an accelerator differ from run to run; prompts that did not change must be the same to the last bit
        after.append(pool(output) if moved else before[-1])
        changed |= moved
        if look_at_tokens:
            tokens.append(_look_at_tokens(batch, output))
    if not all(pooled.isfinite().all() for pooled in after):
        raise LatentLoomError(f"the adjustment {name!r} gives NaN or infinities; train it anew or leave it out")
    return _Adjusted(torch.cat(before).cpu(), torch.cat(after).cpu(), changed, tokens)


def _look_at_tokens(batch: TextEmbeddings, output: TextEmbeddings) -> _Tokens:
    distances, errors = metrics.rounding_errors(output)
    change = (output.tokens - batch.tokens).norm(dim=1).double().square().sum()
    rounding = (errors * output.tokens.norm(dim=1)).square().sum()
    ratios = metrics.norm_ratios(batch.tokens, output.tokens)
    return _Tokens(ratios.cpu(), distances.cpu(), errors.cpu(), float(change), float(rounding))


def _outcome(
    moved: _Adjusted, kept: _Adjusted, goal: _Goal, first: Outcome | None, lengths: Tensor, draw: _Draw
) -> Outcome:
    cosine = metrics.cosines(moved.after, goal.pooled)
    centred = metrics.centred_cosines(moved.after, goal.pooled, goal.centre, goal.centre)
    ranks = metrics.retrieval_ranks(moved.after, goal.pooled, goal.labels)
    drift = metrics.cosine_distances(kept.before, kept.after)
    gain = cosine - first.cosine if first else torch.zeros_like(cosine)
    figures = {
        "cosine": cosine,
        "gain": gain,
        "share_gaining": (gain > SMALLEST_GAIN).double(),
        "centred": centred,
        "centred_gain": centred - first.centred if first else torch.zeros_like(centred),
        "recall_at_1": (ranks == 1).double(),
        "mrr": 1 / ranks.double(),
        "drift": drift,
    }
    buckets = [
        Bucket(tokens, int(rows.sum()), *draw.all({k: figures[k][rows] for k in _IN_BUCKETS}).values())
        for tokens, rows in _buckets(lengths)
    ]
    ratios = metrics.norm_ratios(moved.before, moved.after)
    # prompts without a vector have no ratio, so it can have fewer values than the rest, or none
    lengthened = {"pooled_norm_ratio": draw(ratios)} if len(ratios) else {}
    return Outcome(
        cosine,
        centred,
        ranks,
        drift,
        draw.all(figures) | lengthened,
        buckets,
        ratios,
        torch.cat([part.norm_ratios for part in moved.tokens]),
        metrics.linear_cka(moved.before, moved.after),
        metrics.neighbour_overlap(moved.before, moved.after),
        _rounding(moved.tokens),
    )


_IN_BUCKETS = ("cosine", "gain", "recall_at_1")


def _rounding(parts: Sequence[_Tokens]) -> Rounding:
    distances = torch.cat([part.rounding_distances for part in parts])
    largest_error = max((float(part.rounding_errors.max()) for part in parts if len(part.rounding_errors)), default=0.0)
    change, rounding = sum(part.change for part in parts), sum(part.rounding for part in parts)
    share = (rounding / change) ** 0.5 if change else None
    return Rounding(float(distances.mean()), float(distances.max()), largest_error, share)


def _differences(outcomes: Mapping[str, Outcome], draw: _Draw) -> dict[str, dict[str, dict[str, Estimate]]]:
    values = {
        name: {"cosine": outcome.cosine, "recall_at_1": (outcome.ranks == 1).double()}
        for name, outcome in outcomes.items()
    }
    chosen = [(one, other, key) for one, other in permutations(values, 2) for key in values[one]]
    if not chosen:
        return {name: {} for name in values}
    # one call: drawing the resamples takes longer than all the means
    means = draw.all({str(item): values[item[0]][item[2]] - values[item[1]][item[2]] for item in chosen})
    table: dict[str, dict[str, dict[str, Estimate]]] = {name: {} for name in values}
    for item in chosen:
        table[item[0]].setdefault(item[1], {})[item[2]] = means[str(item)]
    return table


def _gate_outcome(name: str, gate: Gate, base: TextEmbeddings, rewritten: TextEmbeddings, draw: _Draw) -> GateOutcome:
    sides = [
        torch.cat(
            [gate(side[at : at + _PROMPTS_AT_ONCE]).cpu().double() for at in range(0, len(side), _PROMPTS_AT_ONCE)]
        )
        for side in (base, rewritten)
    ]
    if not all(values.isfinite().all() for values in sides):
        raise LatentLoomError(f"the gate of {name!r} gives NaN or infinities; train it anew or leave it out")
    both = draw.all({"base": sides[0], "rewritten": sides[1], "difference": sides[0] - sides[1]})
    buckets = [
        [GateBucket(tokens, int(rows.sum()), draw(values[rows])) for tokens, rows in _buckets(side.lengths.cpu())]
        for values, side in zip(sides, (base, rewritten), strict=True)
    ]
    return GateOutcome(both["base"], both["rewritten"], both["difference"], *buckets)


def _buckets(lengths: Tensor) -> list[tuple[str, Tensor]]:
    """Names and rows of the buckets that hold prompts."""
    rows = {name: (lengths >= low) & (lengths <= high) for name, (low, high) in BUCKETS.items()}
    return [(name, chosen) for name, chosen in rows.items() if chosen.any()]


def _in_float32(embeddings: TextEmbeddings) -> TextEmbeddings:
    return embeddings.to(dtype=torch.float32)


def _check(adjustments: Mapping[str, Adjust], test: PairEmbeddings, gates: Mapping[str, Gate]) -> None:
    if not adjustments:
        raise ConfigError("no adjustment was given; give at least the identity")
    if not len(test):
        raise ShapeError("there are no test pairs; give at least one")
    if unknown := [name for name in gates if name not in adjustments]:
        raise ConfigError(f"a gate for {unknown[0]!r}, which is none of {', '.join(adjustments)}; name an adjustment")
