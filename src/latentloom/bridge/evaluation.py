"""What an evaluation of a bridge found: scores beside their baselines, and texts to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from latentloom.bridge.config import Task
from latentloom.runs.estimates import Estimate

#: What texts are predicted or decoded from, vectors from, by the key in `BridgeScores`; {n} is `best_of`.
LABELS = {
    "right_vectors": "own vectors",
    "shuffled_vectors": "shuffled vectors",
    "no_vectors": "no vectors",
    "greedy": "greedy",
    "best_of": "best of {n}",
    "greedy_shuffled": "shuffled vectors",
    "greedy_unconditional": "no vectors",
    "nearest_training": "training text",
    "bridge": "bridge",
    "ridge": "ridge",
    "mean_vector": "mean vector",
}


@dataclass(frozen=True)
class LossScores:
    """How well the true texts are predicted, token by token.

    Attributes:
        cross_entropy: in nats per token, the end token included; lower is better.
        accuracy: share of tokens that were thought most likely.
    """

    cross_entropy: Estimate
    accuracy: Estimate


@dataclass(frozen=True)
class TextScores:
    """How near texts come to the true ones.

    Attributes:
        bleu: of the corpus, 0 to 100.
        f1: of the words as bags.
        exact_match: share of texts with the same words in the same order.
        cosine: of the texts' own vectors to the true ones; None without an encoder.
        centred_cosine: the same after the mean training vector is taken off both.
    """

    bleu: Estimate
    f1: Estimate
    exact_match: Estimate
    cosine: Estimate | None
    centred_cosine: Estimate | None


@dataclass(frozen=True)
class VectorScores:
    """How near predicted vectors come to the true ones.

    Attributes:
        cosine: to the true vector.
        centred_cosine: the same after the mean training vector is taken off both.
        mse: mean squared difference of a channel.
        r2: share of the squared distance to the mean training vector that is explained.
        recall_at_1: share of texts whose true vector is the nearest of all held-out ones.
    """

    cosine: Estimate
    centred_cosine: Estimate
    mse: Estimate
    r2: Estimate
    recall_at_1: Estimate


@dataclass(frozen=True)
class Sample:
    """A held-out text and what was made of its vector.

    Attributes:
        text: the true one.
        greedy: decoded greedily.
        best: the best of several draws; None where none were drawn.
        nearest: the nearest training text; None without training texts.
    """

    text: str
    greedy: str
    best: str | None
    nearest: str | None


@dataclass(frozen=True)
class BridgeScores:
    """Scores of a bridge on held-out pairs; every table holds the bridge and its baselines by key, see `LABELS`.

    Attributes:
        task: which directions were scored.
        num_texts: held-out texts.
        seed: of the choice of texts, the draws and the resamples.
        best_of: draws of the re-ranked texts.
        encoder: that made vectors of decoded texts; None without.
        losses: vector -> text with the true tokens given; empty for `t2l`.
        texts: vector -> text, decoded; empty for `t2l`.
        vectors: text -> vector; empty for `l2t`.
        gains: by `texts.KEY` or `vectors.KEY`, by score, what it has more than the baseline it has to beat: the nearest
            training text, ridge; on the same texts, with the interval of the difference.
        samples: some of the texts.
        notes: what could not be measured and why, in sentences.
    """

    task: Task
    num_texts: int
    seed: int
    best_of: int
    encoder: str | None
    losses: Mapping[str, LossScores]
    texts: Mapping[str, TextScores]
    vectors: Mapping[str, VectorScores]
    gains: Mapping[str, Mapping[str, Estimate]]
    samples: Sequence[Sample]
    notes: Sequence[str]

    def label(self, key: str) -> str:
        """The name of a row for people."""
        return LABELS[key].format(n=self.best_of)

    def to_json(self) -> dict[str, Any]:
        """Everything, each figure with its interval."""
        return asdict(self)
