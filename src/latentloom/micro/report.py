"""Evaluations side by side: a table with intervals, a chart, a contact sheet and the clips themselves."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentloom.micro.attributes import VALUES
from latentloom.micro.evaluate import Evaluation
from latentloom.micro.score import Accuracy, chance
from latentloom.runs import Report
from latentloom.storage import write_contact_sheet

_ROWS_SHOWN = 6
_STRIPS_PER_SET = 1
_FRAMES_PER_STRIP = 5


def write_report(
    evaluations: Sequence[Evaluation],
    fps: float,
    folder: Path,
    title: str,
    introduction: str | None = None,
    more: Callable[[Report], None] | None = None,
    strips: Sequence[Evaluation] | None = None,
) -> Path:
    """Write `report.html` and `contact_sheet.png` into the folder; returns the page's path.

    Args:
        evaluations: the sets of prompts, the reference first.
        fps: of the clips.
        folder: made where it does not exist.
        title, introduction: of the page.
        more: adds chapters at the end of the page.
        strips: what the contact sheet shows, the evaluations when None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report = Report(title)
    report.paragraph(introduction or "Attributes asked for in the prompt against attributes read from the clip.")
    report.heading("Attribute accuracy")
    attributes = [*VALUES, "all"]
    rows = [
        [item.name, len(item.questions), *(format_accuracy(item.accuracy[name]) for name in attributes)]
        for item in evaluations
    ]
    rows.append(["a guess", None, *(f"{100 * chance(name):.1f}" for name in attributes)])
    report.table(["prompts", "n", *attributes], rows)
    report.paragraph("Percent; in brackets the 95 % Wilson score interval. 'all': right in everything asked for.")
    report.figure(plot_accuracy(evaluations), "Attribute accuracy by set of prompts; dotted: a guess.")
    report.heading("Clips side by side")
    for group in _comparable(evaluations):
        for index in range(min(_ROWS_SHOWN, len(group[0].questions))):
            report.clips([(f"{item.name}: {describe(item, index)}", item.clips[index], fps) for item in group])
    if more is not None:
        more(report)
    write_sheet(evaluations if strips is None else strips, folder / "contact_sheet.png")
    page = folder / "report.html"
    report.write(page)
    return page


def write_sheet(evaluations: Sequence[Evaluation], path: Path) -> None:
    """A still picture: the first clips of every set, a few frames each."""
    strips = [(item, index) for index in range(_STRIPS_PER_SET) for item in evaluations if index < len(item.questions)]
    moments = np.linspace(0, evaluations[0].clips.shape[1] - 1, _FRAMES_PER_STRIP).round().astype(int).tolist()
    write_contact_sheet(
        path,
        [item.clips[index][moments] for item, index in strips],
        [f"{item.name}: {item.questions[index].prompt}" for item, index in strips],
    )


def plot_accuracy(evaluations: Sequence[Evaluation]) -> Figure:
    """Bars per attribute and set, with their intervals."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots()
    attributes = [*VALUES, "all"]
    width = 0.8 / len(evaluations)
    for number, item in enumerate(evaluations):
        accuracies = [item.accuracy[name] for name in attributes]
        shares = np.array([accuracy.share for accuracy in accuracies])
        low, high = np.array([accuracy.interval for accuracy in accuracies]).T
        place = np.arange(len(attributes)) - 0.4 + width * (number + 0.5)
        axes.bar(place, 100 * shares, width * 0.92, label=item.name)
        axes.errorbar(
            place,
            100 * shares,
            100 * np.abs([shares - low, high - shares]),
            fmt="none",
            ecolor="0.25",
            elinewidth=0.8,
        )
    for number, name in enumerate(attributes):
        axes.hlines(100 * chance(name), number - 0.45, number + 0.45, colors="0.2", linestyles="dotted")
    axes.set(xticks=range(len(attributes)), xticklabels=attributes, ylabel="%", ylim=(0, 105))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=5 if len(evaluations) <= 5 else 3, loc="outside upper center", fontsize=8)
    return figure


def describe(item: Evaluation, index: int) -> str:
    """A clip's prompt, and what the clip shows instead of what was asked for."""
    question, found = item.questions[index], item.read[index].mentioned()
    wrong = [
        f"{name} is {found.get(name, 'not readable')}, not {value}"
        for name, value in question.asked.mentioned().items()
        if found.get(name) != value
    ]
    return f"{question.prompt} [{'; '.join(wrong) or 'all right'}]"


def format_accuracy(accuracy: Accuracy) -> str | None:
    """Percent with its interval, or None where nothing was asked."""
    if not accuracy.total:
        return None
    low, high = accuracy.interval
    return f"{100 * accuracy.share:.1f} ({100 * low:.0f}-{100 * high:.0f})"


def _comparable(evaluations: Sequence[Evaluation]) -> list[list[Evaluation]]:
    """Sets that ask for the same attributes in the same order, from the same noise, stand side by side."""
    groups: dict[tuple, list[Evaluation]] = {}
    for item in evaluations:
        groups.setdefault(tuple(question.asked for question in item.questions), []).append(item)
    return list(groups.values())
