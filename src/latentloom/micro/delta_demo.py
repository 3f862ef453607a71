"""The demo's chapter on Embedding Delta: an adapter learned from 750 pairs, and what the clips show with it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.config import TrainConfig
from latentloom.delta.pairs import PromptPair
from latentloom.delta.train import Training, train
from latentloom.delta.training_run import decision
from latentloom.errors import ConfigError
from latentloom.micro.evaluate import Evaluation, evaluate
from latentloom.micro.pairs import make_pairs
from latentloom.micro.recovery import FOREIGN, KNOWN, recovery
from latentloom.micro.report import format_accuracy, plot_accuracy
from latentloom.runs import Report
from latentloom.wan.pipeline import WanPipeline

NUM_PAIRS = 750
SETTINGS = TrainConfig(
    rank=128, cap="auto", orth=False, init="align", lr=1e-3, w_nce=0.02, epochs=40, val_frac=0.1, test_frac=0.0
)
"""Chosen by validation on pairs of training combinations (docs/experiments/delta.md)."""
WITH_DELTA = "with delta"

_INTRODUCTION = (
    "The encoder has read the unseen and telegraphic words as text; the DiT has never met them. An adapter of 128 "
    "directions between the two learns from pairs of sentences, foreign words beside known ones, what the DiT should "
    "have been told. Encoder and DiT stay as they are. None of the pairs asks for a combination of attributes that is "
    "tested here, and a gate leaves prompts in known words alone."
)


@dataclass(frozen=True)
class DeltaChapter:
    """What the adapter was trained to, and the clips with it beside those without."""

    training: Training
    before: dict[str, Evaluation]
    after: dict[str, Evaluation]
    seconds: float

    @property
    def evaluations(self) -> list[Evaluation]:
        """Every set without and with the adapter, foreign ones first."""
        return [item for name in (*FOREIGN, KNOWN) for item in (self.before[name], self.after[name])]


def train_adapter(pipeline: WanPipeline) -> Training:
    """Encode `NUM_PAIRS` pairs from the world's lexicons and train on them with `SETTINGS`, in seconds.

    Raises:
        ConfigError: a pipeline without a text encoder.
    """
    if pipeline.text_encoder is None:
        raise ConfigError("this pipeline has no text encoder, so there is nothing to learn pairs with")
    pairs = [PromptPair(*pair) for pair in make_pairs(NUM_PAIRS)]
    base, rewritten = (
        pipeline.text_encoder.encode([getattr(p, side) for p in pairs]) for side in ("base", "rewritten")
    )
    return train(PairEmbeddings(base, rewritten, pairs, pipeline.text_encoder.fingerprint()), SETTINGS)


def run_delta_chapter(pipeline: WanPipeline, before: Sequence[Evaluation], seed: int) -> DeltaChapter:
    """Train an adapter and make the foreign and the verbose clips again with it.

    Args:
        pipeline: MicroWan.
        before: the evaluations without it.
        seed: of the noise, as before.
    """
    started = time.perf_counter()
    training = train_adapter(pipeline)
    plain = {item.name: item for item in before}
    after = {
        name: evaluate(pipeline, f"{name}, {WITH_DELTA}", plain[name].questions, seed, training.chosen.adapter)
        for name in (KNOWN, *FOREIGN)
    }
    return DeltaChapter(training, plain, after, time.perf_counter() - started)


def add_delta_chapter(report: Report, chapter: DeltaChapter, fps: float, rows_shown: int = 4) -> None:
    """The chapter's part of the demo page."""
    report.heading("Embedding Delta: an adapter between encoder and DiT")
    report.paragraph(_INTRODUCTION)
    report.paragraph(
        f"{NUM_PAIRS} pairs, trained and measured in {chapter.seconds:.0f} s. Chosen by validation: "
        f"{decision(chapter.training)}"
    )
    items = chapter.evaluations
    rows = [
        [item.name, len(item.questions), *(format_accuracy(accuracy) for accuracy in item.accuracy.values())]
        for item in items
    ]
    report.table(["prompts", "n", *items[0].accuracy], rows)
    for name in FOREIGN:
        share = recovery(chapter.before[KNOWN], chapter.before[name], chapter.after[name])
        report.paragraph(
            f"{name}: of what these words cost in clips that are right in everything, the adapter wins back {share}."
        )
    report.figure(plot_accuracy(items), "Attribute accuracy without and with the adapter; dotted: a guess.")
    for index in range(min(rows_shown, len(items[0].questions))):
        shown = [item for name in FOREIGN for item in (chapter.before[name], chapter.after[name])]
        report.clips([(f"{item.name}: {item.questions[index].prompt}", item.clips[index], fps) for item in shown])
