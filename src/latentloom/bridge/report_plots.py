"""Figures of a bridge's page: its curves, and its scores with whiskers beside their baselines."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.score_tables import TITLES

#: Rows that are the bridge's own; the others are baselines.
OWN = ("greedy", "best_of", "bridge")
_NOT_MEASURES = ("step", "seconds", "step_seconds")
_COLUMNS = 3
_LOGARITHMIC_FROM = 50.0  # largest over smallest value, above which an axis is logarithmic
_POINTS_MARKED = 12  # fewer are shown as dots too


def plot_curves(curve: Sequence[Mapping[str, float]]) -> Figure | None:
    """A panel for each measure of a training by step; None where there is no line."""
    names = [name for name in dict.fromkeys(key for line in curve for key in line) if name not in _NOT_MEASURES]
    if not names:
        return None
    num_columns = 2 if len(names) in (2, 4) else min(_COLUMNS, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = Figure(figsize=(max(3.6 * num_columns, 5.2), 2.4 * num_rows + 0.4), layout="constrained")
    panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        points = [(line["step"], line[name]) for line in curve if name in line]
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, linewidth=1.2, marker="o" if len(points) < _POINTS_MARKED else "", markersize=3)
        panel.set(title=name, xlabel="step")
        known = [value for value in values if isfinite(value)]
        # a rate that falls to 0 would be nothing but its end
        if name != "lr" and known and min(known) > 0 and max(known) > _LOGARITHMIC_FROM * min(known):
            panel.set_yscale("log")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _tidy(panel)
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return figure


def plot_texts(scores: BridgeScores) -> Figure | None:
    """F1, BLEU and cosines of decoded texts; a line at the nearest training text. None where no text was decoded."""
    return _plot_rows(scores, scores.texts, ("f1", "bleu", "cosine", "centred_cosine"), "nearest_training")


def plot_vectors(scores: BridgeScores) -> Figure | None:
    """Cosines, R2 and R@1 of predicted vectors; a line at ridge. None where no vector was predicted."""
    return _plot_rows(scores, scores.vectors, ("cosine", "centred_cosine", "r2", "recall_at_1"), "ridge")


def _plot_rows(scores: BridgeScores, rows: Mapping[str, Any], names: Sequence[str], to_beat: str) -> Figure | None:
    """A panel for each score that there is, a row with whiskers for each key."""
    names = [name for name in names if any(getattr(row, name) is not None for row in rows.values())]
    if not rows or not names:
        return None
    figure = Figure(figsize=(2.6 * len(names) + 2.2, 0.34 * len(rows) + 1.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    keys = list(rows)
    for panel, name in zip(panels, names, strict=True):
        for place, key in enumerate(keys):
            found = getattr(rows[key], name)
            reach = [[found.value - found.low], [found.high - found.value]]
            colour = "C0" if key in OWN else "0.45"
            panel.errorbar([found.value], [place], xerr=reach, fmt="o", color=colour, capsize=3, markersize=5)
        if to_beat in rows:
            panel.axvline(getattr(rows[to_beat], name).value, color="0.45", linestyle="dotted", linewidth=1.0)
        panel.set(title=TITLES[name])
        panel.margins(x=0.12)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        _tidy(panel)
    panels[0].set_yticks(range(len(keys)), [scores.label(key) for key in keys])
    panels[0].set_ylim(len(keys) - 0.5, -0.5)
    return figure


def _tidy(panel: Axes) -> None:
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
