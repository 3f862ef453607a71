"""A training as a page: what was tried, what validation says of it, and the curves."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentloom.delta.config import TrainConfig
from latentloom.delta.history import LOSSES, SCORES
from latentloom.delta.train import Candidate, Training
from latentloom.delta.validation import LARGEST_DRIFT, LARGEST_RECALL_LOSS
from latentloom.runs import Report

_SCORE_TITLES = {"cosine": "validation cosine", "recall_at_1": "validation R@1", "drift": "drift of rewrites"}


def write_training_report(training: Training, config: TrainConfig, folder: Path, data: str) -> Path:
    """Write `report.html` into the folder and return its path."""
    report = Report("Embedding Delta: training")
    sizes = {"train": training.split.train, "validation": training.split.validation, "test": training.split.test}
    report.paragraph(
        f"{data}: " + ", ".join(f"{len(rows)} pairs to {name}" for name, rows in sizes.items()) + ". The test part was "
        "not looked at; `latentloom delta eval` does that."
    )
    report.heading("What validation chose")
    report.paragraph(
        "The highest cosine to the rewrites among the candidates that lose at most "
        f"{LARGEST_RECALL_LOSS:g} of R@1 and drift at most {LARGEST_DRIFT:g} on prompts that are rewrites already."
    )
    rows = []
    for item in training.candidates:
        mark = "chosen" if item is training.chosen else "" if item.score.keeps(training.before) else "out"
        epochs = None if item.history is None else f"{item.history.best + 1} of {len(item.history)}"
        score = item.score
        rows.append([item.name, score.cosine, score.recall_at_1, f"{score.drift:.1e}", epochs, item.seconds, mark])
    report.table(["candidate", "cosine", "R@1", "drift", "best epoch", "seconds", ""], rows)
    trained = [item for item in training.candidates if item.history is not None]
    if trained:
        report.heading("Curves")
        report.figure(plot_scores(trained), "Validation by epoch; the dot is the epoch that was kept.")
        report.figure(plot_losses(training, trained), "The loss terms by epoch, not weighted.")
    report.heading("Settings")
    report.table(["setting", "value"], [[name, str(value)] for name, value in config.model_dump().items()])
    page = folder / "report.html"
    report.write(page)
    return page


def plot_scores(trained: list[Candidate]) -> Figure:
    """A panel per validation figure, a line per SGD run."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, len(SCORES))
    for panel, (name, title) in zip(panels, _SCORE_TITLES.items(), strict=True):
        for number, item in enumerate(trained):
            values, best = _column(item, name), item.history.best if item.history else 0
            panel.plot(np.arange(1, len(values) + 1), values, color=f"C{number % 10}", label=item.name, linewidth=1.2)
            panel.plot(best + 1, values[best], "o", color=f"C{number % 10}", markersize=4)
        panel.set(title=title, xlabel="epoch")
        if name == "drift":
            panel.set_yscale("symlog", linthresh=1e-6)
            panel.axhline(LARGEST_DRIFT, color="0.3", linestyle="dotted")
    _finish(figure, panels, len(trained))
    return figure


def plot_losses(training: Training, trained: list[Candidate]) -> Figure:
    """Every loss term of the chosen run, or of the first where none was chosen."""
    item = training.chosen if training.chosen.history is not None else trained[0]
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    panels = figure.subplots(1, len(LOSSES))
    for panel, name in zip(panels, LOSSES, strict=True):
        values = _column(item, name)
        panel.plot(np.arange(1, len(values) + 1), values, linewidth=1.2)
        panel.set(title=name, xlabel="epoch")
        panel.grid(alpha=0.25)
    figure.suptitle(item.name)
    return figure


def _column(item: Candidate, name: str) -> list[float]:
    assert item.history is not None
    curves = item.history.to_json()
    return [row[curves["columns"].index(name)] for row in curves["rows"]]


def _finish(figure: Figure, panels: np.ndarray, num_lines: int) -> None:
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, fontsize=8, ncols=min(4, num_lines), loc="outside lower center")
