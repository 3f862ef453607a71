"""A training as a page: what was tried, what validation says of it, and the curves."""

from itertools import chain
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from latentloom.delta.baselines import BASELINES
from latentloom.delta.config import TrainConfig
from latentloom.delta.history import LOSSES, SCORES
from latentloom.delta.train import Candidate, Training
from latentloom.delta.validation import LARGEST_DRIFT, LARGEST_RECALL_LOSS, Score
from latentloom.runs import Report

_SCORE_TITLES = {"cosine": "validation cosine", "recall_at_1": "validation R@1", "drift": "drift of rewrites"}
_SMALLEST_DRIFT = 1e-7  # what float32 tells from nothing; the drift's axis is logarithmic
_LIMIT = {"color": "0.3", "linestyle": "dotted", "linewidth": 1.0}
_SHADES = (0.5, 1.0)


def write_training_report(training: Training, config: TrainConfig, folder: Path, data: str) -> Path:
    """Write `report.html` into the folder and return its path."""
    report = Report("Embedding Delta: training")
    sizes = {"train": training.split.train, "validation": training.split.validation, "test": training.split.test}
    report.paragraph(
        f"{data}: " + ", ".join(f"{len(rows)} pairs to {name}" for name, rows in sizes.items()) + ". The test part was "
        "not looked at; latentloom delta eval does that."
    )
    report.heading("What validation chose")
    report.paragraph(
        "The highest cosine to the rewrites among the candidates that lose at most "
        f"{LARGEST_RECALL_LOSS:g} of R@1 and drift at most {LARGEST_DRIFT:g} on prompts that are rewrites already."
    )
    columns = ["candidate", "cosine", "R@1", "drift", "best epoch", "epochs", "seconds", ""]
    report.table(columns, [_row(item, training) for item in training.candidates])
    report.figure(
        plot_choice(training),
        "Every candidate by the two figures that pull against each other. Filled: within the limits; hollow: out for "
        "lost R@1 or drift. Left of the dotted line R@1 loses too much.",
    )
    trained = [item for item in training.candidates if item.history is not None]
    if trained:
        report.heading("Curves")
        report.figure(
            plot_scores(trained, training.before),
            "Validation by epoch; the dot is the epoch that was kept. Dotted: the cosine without an adapter, the "
            "lowest R@1 and the largest drift allowed. One colour per start, darker for a larger cap.",
        )
        report.figure(plot_losses(training, trained), "The loss terms by epoch, not weighted.")
    report.heading("Settings")
    report.table(["setting", "value"], [[name, str(value)] for name, value in config.model_dump().items()])
    page = folder / "report.html"
    report.write(page)
    return page


def plot_choice(training: Training) -> Figure:
    """Cosine over R@1, a dot per candidate; baselines and the chosen one by name."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.subplots()
    colours = _colours([item for item in training.candidates if item.history is not None])
    for item in training.candidates:
        score, colour = item.score, colours.get(item.name, "0.2")
        marker = "s" if item.name in BASELINES else "o"
        fill = colour if score.keeps(training.before) else "none"
        panel.plot(score.recall_at_1, score.cosine, marker, color=colour, markerfacecolor=fill, markersize=6)
        if item is training.chosen or item.name in BASELINES:
            name = f"{item.name} (chosen)" if item is training.chosen else item.name
            panel.annotate(
                name, (score.recall_at_1, score.cosine), (0, 7), textcoords="offset points", ha="center", fontsize=8
            )
    panel.axvline(training.before.recall_at_1 - LARGEST_RECALL_LOSS, **_LIMIT)
    panel.margins(x=0.16, y=0.14)
    panel.set(xlabel="validation R@1", ylabel="validation cosine")
    _tidy(panel)
    return figure


def plot_scores(trained: list[Candidate], before: Score) -> Figure:
    """A panel per validation figure, a line per SGD run, and what the choice holds it to."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels, colours = figure.subplots(1, len(SCORES)), _colours(trained)
    limits = {"cosine": before.cosine, "recall_at_1": before.recall_at_1 - LARGEST_RECALL_LOSS, "drift": LARGEST_DRIFT}
    for panel, (name, title) in zip(panels, _SCORE_TITLES.items(), strict=True):
        curves = {item.name: _column(item, name) for item in trained}
        for item in trained:
            values, best, colour = curves[item.name], item.history.best if item.history else 0, colours[item.name]
            panel.plot(np.arange(1, len(values) + 1), values, color=colour, label=item.name, linewidth=1.2)
            panel.plot(best + 1, values[best], "o", color=colour, markersize=4)
        panel.axhline(limits[name], **_LIMIT)
        panel.set(title=title, xlabel="epoch")
        if name == "drift":
            _scale_drift(panel, list(chain.from_iterable(curves.values())))
        _scale_epochs(panel, max(map(len, curves.values())))
        _tidy(panel)
    lines, labels = panels[0].get_legend_handles_labels()
    # columns are filled from the top: one cap each, as the runs come in the order of their caps
    num_columns = min(4, len({_cap_of(item) for item in trained})) if len(trained) > 1 else 1
    figure.legend(lines, labels, frameon=False, fontsize=8, ncols=num_columns, loc="outside lower center")
    return figure


def plot_losses(training: Training, trained: list[Candidate]) -> Figure:
    """Every loss term of the chosen run, or of the first where none was chosen."""
    item = training.chosen if training.chosen.history is not None else trained[0]
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    panels = figure.subplots(1, len(LOSSES))
    for panel, name in zip(panels, LOSSES, strict=True):
        values = _column(item, name)
        panel.plot(np.arange(1, len(values) + 1), values, linewidth=1.2)
        panel.set(title=name, xlabel="epoch")
        _scale_epochs(panel, len(values))
        _tidy(panel)
    figure.suptitle(item.name)
    return figure


def _row(item: Candidate, training: Training) -> list[Any]:
    score, before = item.score, training.before
    epochs = [None, None, None]
    if item.history is not None:
        epochs = [str(item.history.best + 1), str(len(item.history)), f"{item.seconds:.1f}"]
    faults = []
    if score.recall_at_1 < before.recall_at_1 - LARGEST_RECALL_LOSS:
        faults.append("R@1")
    if score.drift > LARGEST_DRIFT:
        faults.append("drift")
    mark = f"out: {' and '.join(faults)}" if faults else ""
    if item is training.chosen:
        mark = "chosen"
    drift = f"{score.drift:.1e}" if score.drift else "0"
    return [item.name, f"{score.cosine:.4f}", f"{score.recall_at_1:.3f}", drift, *epochs, mark]


def _colours(trained: list[Candidate]) -> dict[str, tuple[float, ...]]:
    """By run: a colour per start, darker for a larger cap."""
    starts = list(dict.fromkeys(_start_of(item) for item in trained))
    caps = sorted({_cap_of(item) for item in trained})
    shades = np.linspace(*_SHADES, len(caps)) if len(caps) > 1 else [_SHADES[1]]
    colours = {}
    for item in trained:
        full, shade = np.array(to_rgb(f"C{starts.index(_start_of(item)) % 10}")), shades[caps.index(_cap_of(item))]
        # small caps are mixed with white, and the largest with a little black
        mixed = full * shade + (1 - shade) if len(caps) > 1 and shade < 1 else full * (0.75 if len(caps) > 1 else 1.0)
        colours[item.name] = tuple(float(value) for value in mixed)
    return colours


def _start_of(item: Candidate) -> str:
    return item.name.partition(",")[0]


def _cap_of(item: Candidate) -> float:
    return item.adapter.config.cap or 0.0


def _column(item: Candidate, name: str) -> list[float]:
    assert item.history is not None
    curves = item.history.to_json()
    values = [row[curves["columns"].index(name)] for row in curves["rows"]]
    return [max(value, _SMALLEST_DRIFT) for value in values] if name == "drift" else values


def _scale_drift(panel: Axes, values: list[float]) -> None:
    # whole decades: an axis within one decade would have no labels
    known = [LARGEST_DRIFT, *filter(isfinite, values)]
    low, high = floor(log10(min(known))), ceil(log10(max(known)))
    panel.set_ylim(10.0**low, 10.0**high)
    panel.set_yscale("log")


def _scale_epochs(panel: Axes, num_epochs: int) -> None:
    # most happens in the first epochs, and runs differ in length manyfold; the ends are given, since a logarithmic
    # axis cannot find them where a run that diverged is all there is
    panel.set_xlim(0.9, 1.1 * max(num_epochs, 2))
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())


def _tidy(panel: Axes) -> None:
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
