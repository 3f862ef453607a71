"""The demo's chapter on steering: a colour set by a control vector, fitted from pairs of sentences in a second."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from latentloom.errors import ConfigError
from latentloom.micro.attributes import VALUES
from latentloom.micro.evaluate import Evaluation, evaluate
from latentloom.micro.report import format_accuracy
from latentloom.micro.score import Accuracy
from latentloom.micro.steering_control import attribute_pairs, set_value
from latentloom.runs import Report
from latentloom.steering.control.fit import fit_control
from latentloom.steering.control.record import record_pairs
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.hosts.diffusers import steer
from latentloom.wan.pipeline import WanPipeline

NUM_PAIRS = 48
STRENGTH = 4.0
SHOWN = ("red", "green", "cyan")
NUM_QUESTIONS = 16
ROWS_SHOWN = 3

_INTRODUCTION = (
    "Another way to make the model listen leaves the prompt as it is and acts inside the frozen DiT. For each colour, "
    "the mean difference of {num} pairs of sentences that differ in the colour word alone gives a control vector. In "
    "every block, what all six tell apart is taken out of the rows that cross-attention reads, and one of them is "
    "added. The prompts are the verbose ones above; none of the pairs asks for a combination that they ask for."
)


@dataclass(frozen=True)
class SteeringChapter:
    """The verbose prompts as they are and with their colour set."""

    plain: Evaluation
    set_to: Mapping[str, Evaluation]
    seconds: float


def fit_colours(pipeline: WanPipeline) -> dict[str, ControlVector]:
    """A control vector at the context for every colour.

    Raises:
        ConfigError: a pipeline without a text encoder.
    """
    if pipeline.text_encoder is None:
        raise ConfigError("this pipeline has no text encoder, so there is nothing to fit control vectors with")
    family = {}
    for value in VALUES["colour"]:
        pairs = attribute_pairs("colour", value, NUM_PAIRS)
        positive, negative = (pipeline.text_encoder.encode([pair[side] for pair in pairs]) for side in (0, 1))
        recorded = record_pairs(pipeline, positive, negative, list(range(NUM_PAIRS)), "context")
        family[value] = fit_control(*recorded, site="context", model=pipeline.facts.key).control
    return family


def run_steering_chapter(pipeline: WanPipeline, plain: Evaluation, seed: int) -> SteeringChapter:
    """Fit the vectors and make the first clips again with each of a few colours set.

    Args:
        pipeline: MicroWan.
        plain: the verbose prompts without steering.
        seed: of the noise, as before.
    """
    started = time.perf_counter()
    family = fit_colours(pipeline)
    set_to = {}
    for value in SHOWN:
        with steer(pipeline, set_value(family, value, STRENGTH)):
            set_to[value] = evaluate(pipeline, f"set to {value}", plain.questions[:NUM_QUESTIONS], seed)
    return SteeringChapter(plain, set_to, time.perf_counter() - started)


def add_steering_chapter(report: Report, chapter: SteeringChapter, fps: float) -> None:
    """The chapter's part of the demo page."""
    report.heading("Steering: a colour set inside the frozen DiT")
    report.paragraph(_INTRODUCTION.format(num=NUM_PAIRS))
    report.paragraph(f"Fitted and measured in {chapter.seconds:.0f} s.")
    others = [name for name in VALUES if name != "colour"]
    rows = []
    for value, item in chapter.set_to.items():
        moved = Accuracy(sum(found.colour == value for found in item.read), len(item.read))
        kept = [format_accuracy(item.accuracy[name]) for name in others]
        rows.append([item.name, len(item.questions), format_accuracy(moved), *kept])
    report.table(["prompts", "n", "shows it %", *(f"{name} kept %" for name in others)], rows)
    for index in range(min(ROWS_SHOWN, len(chapter.plain.questions))):
        shown = [(f"plain: {chapter.plain.questions[index].prompt}", chapter.plain.clips[index], fps)]
        shown += [(item.name, item.clips[index], fps) for item in chapter.set_to.values()]
        report.clips(shown)
