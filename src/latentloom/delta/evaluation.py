"""What an evaluation found, per pair and in sum, and its form in `metrics.json`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.delta.bootstrap import CONFIDENCE, Estimate
from latentloom.delta.pairs import PromptPair

#: Said wherever centred figures are shown.
CENTRING = (
    "Centred cosines: the training mean of the rewritten prompts is subtracted from the adjusted prompt and from the "
    "rewrite. Shifted cosine: from the base prompts their own training mean, from the rewrites theirs."
)


@dataclass(frozen=True)
class Rounding:
    """What is lost when an adjustment's output is rounded to bfloat16.

    `mean_distance` and `max_distance` are 1 - cosine of pooled prompts, `max_token_error` is relative to the token's
    length, and `share_of_change` is the rounding's size over that of the adjustment itself (None where it is 0).
    """

    mean_distance: float
    max_distance: float
    max_token_error: float
    share_of_change: float | None


@dataclass(frozen=True)
class Bucket:
    """The pairs whose base prompt has so many tokens."""

    tokens: str
    num_pairs: int
    cosine: Estimate
    gain: Estimate
    recall_at_1: Estimate


@dataclass(frozen=True, eq=False)
class Outcome:
    """One adjustment on the test pairs, per pair and in sum.

    Args:
        cosine, centred: of the adjusted base prompt and its rewrite.
        ranks: place of the right rewrite among all test rewrites.
        drift: 1 - cosine of the rewritten prompt before and after the adjustment.
        estimates: means over the pairs with intervals, by name.
        buckets: by length of the base prompt; only those that hold pairs.
        pooled_norm_ratios, token_norm_ratios: lengths after over before, of base prompts; zero vectors are left out.
        cka, neighbour_overlap: base prompts before against after; None where there are too few.
        rounding: of adjusted base prompts to bfloat16.
    """

    cosine: Float[Tensor, "B"]
    centred: Float[Tensor, "B"]
    ranks: Int[Tensor, "B"]
    drift: Float[Tensor, "B"]
    estimates: dict[str, Estimate]
    buckets: list[Bucket]
    pooled_norm_ratios: Float[Tensor, "_"]
    token_norm_ratios: Float[Tensor, "_"]
    cka: float | None
    neighbour_overlap: float | None
    rounding: Rounding


@dataclass(frozen=True)
class GateBucket:
    """The gate on the prompts of one side that have so many tokens."""

    tokens: str
    num_prompts: int
    gate: Estimate


@dataclass(frozen=True)
class GateOutcome:
    """A gate on both sides: open on base prompts and closed on rewritten ones is what it should be."""

    base: Estimate
    rewritten: Estimate
    difference: Estimate
    base_buckets: list[GateBucket]
    rewritten_buckets: list[GateBucket]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Adjustments by name, the identity first, measured on the same pairs.

    Args:
        outcomes: by adjustment.
        differences: [a][b] is the mean of a's figure minus b's over the same pairs, "cosine" and "recall_at_1".
        gates: by adjustment, of those that have one.
        shifted: cosine of the base prompts less their training mean and the rewrites less theirs: what a constant
            shift of all prompts can reach, to be compared with centred cosines.
        lengths: tokens of each base prompt.
        pairs: prompts, or None where the cache has none.
        seed, num_resamples: of the intervals.
    """

    outcomes: dict[str, Outcome]
    differences: dict[str, dict[str, dict[str, Estimate]]]
    gates: dict[str, GateOutcome]
    shifted: Estimate
    lengths: Int[Tensor, "B"]
    pairs: list[PromptPair] | None
    seed: int
    num_resamples: int

    @cached_property
    def reference(self) -> str:
        """The name of the identity, which the others are measured against."""
        return next(iter(self.outcomes))

    def __len__(self) -> int:
        return len(self.lengths)

    def gain(self, name: str) -> Float[Tensor, "B"]:
        """The cosine that an adjustment adds to each pair's."""
        return self.outcomes[name].cosine - self.outcomes[self.reference].cosine

    def to_json(self) -> dict[str, object]:
        """Everything but the values per pair, for `metrics.json`; what is not defined is left out."""
        return {
            "num_pairs": len(self),
            "reference": self.reference,
            "intervals": {
                "method": "percentile bootstrap over test pairs",
                "confidence": CONFIDENCE,
                "num_resamples": self.num_resamples,
                "seed": self.seed,
            },
            "centring": CENTRING,
            "shifted_cosine": self.shifted.to_json(),
            "adjustments": {
                name: {**_outcome_json(outcome, self.gain(name)), "versus": _differences_json(self.differences[name])}
                for name, outcome in self.outcomes.items()
            },
            "gates": {name: _gate_json(gate) for name, gate in self.gates.items()},
        }


def spread(values: Float[Tensor, "_"]) -> dict[str, float]:
    """Median, tenth and ninetieth percentile; nothing of nothing."""
    if not len(values):
        return {}
    marks = values.double().quantile(torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64))
    return dict(zip(("median", "p10", "p90"), marks.tolist(), strict=True))


def _outcome_json(outcome: Outcome, gain: Tensor) -> dict[str, object]:
    means = {name: value.to_json() for name, value in outcome.estimates.items()}
    tokens = outcome.token_norm_ratios
    return _stated(
        {
            "cosine": {**means["cosine"], **spread(outcome.cosine)},
            "gain": {**means["gain"], **spread(gain)},
            "share_gaining": means["share_gaining"],
            "centred": {**means["centred"], **spread(outcome.centred)},
            "centred_gain": means["centred_gain"],
            "recall_at_1": means["recall_at_1"],
            "mrr": means["mrr"],
            "identity_drift": {**means["drift"], **spread(outcome.drift), "max": float(outcome.drift.max())},
            "pooled_norm_ratio": _stated({**means.get("pooled_norm_ratio", {}), **spread(outcome.pooled_norm_ratios)}),
            "token_norm_ratio": {**({"mean": float(tokens.mean())} if len(tokens) else {}), **spread(tokens)},
            "cka": outcome.cka,
            "neighbour_overlap": outcome.neighbour_overlap,
            "bfloat16": _stated(asdict(outcome.rounding)),
            "by_length": [_bucket_json(bucket) for bucket in outcome.buckets],
        }
    )


def _bucket_json(bucket: Bucket) -> dict[str, object]:
    return {
        "tokens": bucket.tokens,
        "num_pairs": bucket.num_pairs,
        "cosine": bucket.cosine.to_json(),
        "gain": bucket.gain.to_json(),
        "recall_at_1": bucket.recall_at_1.to_json(),
    }


def _differences_json(others: Mapping[str, Mapping[str, Estimate]]) -> dict[str, object]:
    return {other: {name: value.to_json() for name, value in figures.items()} for other, figures in others.items()}


def _gate_json(gate: GateOutcome) -> dict[str, object]:
    sides: dict[str, tuple[Estimate, Sequence[GateBucket]]] = {
        "base": (gate.base, gate.base_buckets),
        "rewritten": (gate.rewritten, gate.rewritten_buckets),
    }
    found: dict[str, object] = {"difference": gate.difference.to_json()}
    for side, (mean, buckets) in sides.items():
        by_length = [{"tokens": b.tokens, "num_prompts": b.num_prompts, **b.gate.to_json()} for b in buckets]
        found[side] = {**mean.to_json(), "by_length": by_length}
    return found


def _stated(values: Mapping[str, object]) -> dict[str, object]:
    """What has a value; a null in a file would not say why."""
    return {name: value for name, value in values.items() if value is not None and value != {}}
