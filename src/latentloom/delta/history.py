"""The course of one SGD run, epoch by epoch; it travels in checkpoints and in the record of what came out."""

from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.delta.validation import Score

LOSSES = ("cosine loss", "contrast", "anchor", "magnitude", "gate loss")
SCORES = ("cosine", "recall_at_1", "drift")


class History:
    """Loss terms and validation figures of every epoch, and which epoch was best.

    Args:
        before: the validation figures without an adapter, which the choice of the best epoch refers to.

    Attributes:
        best: the best epoch, from 0; the first of equals.
    """

    def __init__(self, before: Score) -> None:
        self.before = before
        self.rows: list[list[float]] = []
        self.best = 0

    def append(self, losses: Float[Tensor, "5"], score: Score, seconds: float) -> None:
        """Add an epoch.

        Args:
            losses: mean loss terms, in the order of `LOSSES`.
            score: on the validation pairs, after it.
            seconds: since the run began.
        """
        self.rows.append([*losses.tolist(), *astuple(score), seconds])
        if score.rank(self.before) > self.best_score.rank(self.before):
            self.best = len(self) - 1

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def best_score(self) -> Score:
        """The validation figures of the best epoch, the first of equals."""
        return Score(*self.rows[self.best][len(LOSSES) : -1])

    @property
    def num_epochs_since_best(self) -> int:
        """How many epochs came after the best one."""
        return len(self) - 1 - self.best if self.rows else 0

    @property
    def seconds(self) -> float:
        """How long the run has taken, over all its sittings."""
        return self.rows[-1][-1] if self.rows else 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """The rows and the figures before, as tensors."""
        rows = torch.tensor(self.rows, dtype=torch.float64).reshape(len(self), len(LOSSES) + len(SCORES) + 1)
        before = torch.tensor(astuple(self.before), dtype=torch.float64)
        return {"rows": rows, "before": before, "best": torch.tensor(self.best)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self.rows, self.before = state["rows"].tolist(), Score(*state["before"].tolist())
        self.best = int(state["best"])

    def to_json(self) -> dict[str, Any]:
        """Rows by epoch, with the names of their columns."""
        columns = [*LOSSES, *SCORES, "seconds"]
        return {"columns": columns, "before": self.before.to_json(), "best": self.best, "rows": self.rows}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "History":
        """What `to_json` gave."""
        history = cls(Score(**stored["before"]))
        history.rows = [[float(value) for value in row] for row in stored["rows"]]
        history.best = int(stored["best"])
        return history
