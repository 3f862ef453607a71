"""How much of what foreign words cost an adjustment of the embeddings wins back, in attribute accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentloom.micro.evaluate import Evaluation, evaluate
from latentloom.micro.score import prompt_set
from latentloom.wan.pipeline import Adjust, WanPipeline

KNOWN = "verbose"
FOREIGN = ("unseen synonyms", "telegraphic")
_NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Recovery:
    """The share of the gap between foreign and known words that an adjustment closes, with its 95 % interval."""

    share: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """The share and its interval."""
        return {"share": self.share, "interval": [self.low, self.high]}

    def __str__(self) -> str:
        if not np.isfinite(self.share):
            return "nothing, since there is no gap"
        return f"{100 * self.share:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"


def evaluate_adjusted(
    pipeline: WanPipeline,
    adjustments: Mapping[str, Adjust | None],
    num_prompts: int,
    seed: int = 0,
    sets: Sequence[str] = (KNOWN, *FOREIGN),
) -> dict[str, dict[str, Evaluation]]:
    """Evaluations by adjustment and set of prompts; all start from the same noise.

    Args:
        pipeline: the model.
        adjustments: by name; None is no adjustment.
        num_prompts: of each set.
        seed: of prompts and noise.
        sets: names of prompt sets.
    """
    questions = {name: prompt_set(name, num_prompts, seed) for name in sets}
    return {
        label: {name: evaluate(pipeline, f"{name}: {label}", asked, seed, adjust) for name, asked in questions.items()}
        for label, adjust in adjustments.items()
    }


def recovery(known: Evaluation, foreign: Evaluation, adjusted: Evaluation, seed: int = 0) -> Recovery:
    """(adjusted - foreign) / (known - foreign) in clips that are right in everything asked for.

    Args:
        known, foreign: without an adjustment, for the same attributes in the same order; without a gap between them
            the share is NaN.
        adjusted: the foreign prompts with it.
        seed: of the bootstrap over prompts, which draws the same ones from all three.
    """
    right = np.array([_right(item) for item in (known, foreign, adjusted)], dtype=float)
    draws = np.random.default_rng(seed).integers(right.shape[1], size=(_NUM_RESAMPLES, right.shape[1]))
    shares = _share(right[:, draws].mean(axis=2))
    share = float(_share(right.mean(axis=1)))
    if not np.isfinite(shares).any():
        return Recovery(share, np.nan, np.nan)
    low, high = np.nanpercentile(shares, [2.5, 97.5])
    return Recovery(share, float(low), float(high))


def _right(item: Evaluation) -> list[bool]:
    return [
        question.asked.mentioned().items() <= found.mentioned().items()
        for question, found in zip(item.questions, item.read, strict=True)
    ]


def _share(means: np.ndarray) -> np.ndarray:
    known, foreign, adjusted = means
    gap = known - foreign
    return np.where(gap > 0, (adjusted - foreign) / np.where(gap > 0, gap, 1), np.nan)
