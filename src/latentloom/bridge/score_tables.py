"""Scores of a bridge as tables and sentences, for a page and for the terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from latentloom.bridge.evaluation import BridgeScores
from latentloom.runs.estimates import Estimate

#: Names of scores for people, by field.
TITLES = {
    "cross_entropy": "CE, nats",
    "accuracy": "token accuracy",
    "bleu": "BLEU",
    "f1": "token F1",
    "exact_match": "exact match",
    "cosine": "cosine",
    "centred_cosine": "centred cosine",
    "mse": "MSE x 1000",
    "r2": "R2",
    "recall_at_1": "R@1",
}
_IN_WORDS = {"f1": "token F1", "cosine": "cosine"}


@dataclass(frozen=True)
class ScoreTable:
    """One table.

    Attributes:
        heading: what was scored.
        columns: names of the scores, after that of the rows.
        rows: texts of the cells; None where there is no figure.
    """

    heading: str
    columns: list[str]
    rows: list[list[str | None]]


def score_tables(scores: BridgeScores) -> list[ScoreTable]:
    """A table for each side that was scored, the bridge's rows first and its baselines below."""
    sides = [
        ("Vector to text: the true texts, token by token", "predicted from", scores.losses),
        ("Vector to text: decoded texts", "texts", scores.texts),
        ("Text to vector", "vectors from", scores.vectors),
    ]
    return [_table(scores, heading, first, rows) for heading, first, rows in sides if rows]


def verdict(scores: BridgeScores) -> list[str]:
    """What the scores say of the bridge and of what it has to beat, in a few sentences."""
    sentences = []
    losses = scores.losses
    if "right_vectors" in losses:
        own, without = losses["right_vectors"], losses["no_vectors"]
        shuffled = losses.get("shuffled_vectors")
        other = f", {shuffled.cross_entropy.value:.2f} with those of other texts" if shuffled else ""
        sentences.append(
            f"Texts cost {own.cross_entropy.value:.2f} nats a token with their vectors, "
            f"{without.cross_entropy.value:.2f} without{other}; {own.accuracy.value:.1%} of the tokens are right."
        )
    for key in ("greedy", "best_of"):
        if gains := scores.gains.get(f"texts.{key}"):
            sentences.append(_compared(scores.label(key).capitalize(), gains, "the nearest training text"))
    if "bridge" in scores.vectors:
        own = scores.vectors["bridge"]
        sentences.append(
            f"Vectors of texts: cosine {own.cosine.value:.3f}, R2 {own.r2.value:.3f}, R@1 {own.recall_at_1.value:.1%} "
            f"of {scores.num_texts}."
        )
    if gains := scores.gains.get("vectors.bridge"):
        sentences.append(_compared("The bridge", {"cosine": gains["cosine"]}, "ridge on the same features"))
    return sentences


def stated(estimate: Estimate | None) -> str | None:
    """A figure with its interval, in as many digits as fit a table of six columns."""
    if estimate is None:
        return None
    size = max(abs(estimate.value), abs(estimate.low), abs(estimate.high))
    digits, ends = (1, 1) if size >= 10 else (2, 2) if size >= 2 else (3, 2)
    return f"{estimate.value:.{digits}f} [{estimate.low:.{ends}f}, {estimate.high:.{ends}f}]"


def _table(scores: BridgeScores, heading: str, first: str, rows: Mapping[str, Any]) -> ScoreTable:
    names = [field.name for field in fields(next(iter(rows.values())))]
    names = [name for name in names if any(getattr(row, name) is not None for row in rows.values())]
    cells = [[scores.label(key), *(stated(_scaled(row, name)) for name in names)] for key, row in rows.items()]
    return ScoreTable(heading, [first, *(TITLES[name] for name in names)], cells)


def _scaled(row: Any, name: str) -> Estimate | None:
    """A score in its column's unit: vectors of length 1 have errors of thousandths."""
    found: Estimate | None = getattr(row, name)
    if name != "mse" or found is None:
        return found
    return Estimate(1000 * found.value, 1000 * found.low, 1000 * found.high)


def _compared(who: str, gains: Mapping[str, Estimate], other: str) -> str:
    """In which scores one is above the other, below it, or not told apart from it on these texts."""
    found: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for name, gain in gains.items():
        if name in _IN_WORDS:
            word = "above" if gain.low > 0 else "below" if gain.high < 0 else "not told apart from"
            found[word].append(f"{_IN_WORDS[name]} ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])")
    parts = [f"{word} {other} in {_listed(names)}" for word, names in found.items() if names]
    return f"{who}: {', '.join(parts)}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
