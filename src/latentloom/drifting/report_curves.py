"""The curves of trainings as figures: a panel per measure, a line per training."""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

Curves = Mapping[str, Sequence[Mapping[str, float]]]

#: By prefix of the measures: heading and caption of their figure on a page.
CURVE_PANELS = {
    "": (
        "Training",
        "The loss, the learning rate and the like by step. The drifting loss stays level, since forces are normalised; "
        "progress shows in the evaluation.",
    ),
    "eval": ("Evaluation", "Scores of held-out samples by step, refined by the averaged weights."),
    "interp": ("Interpolation", "The error of the interpolation that the refiner starts from, by step."),
    "kernel": ("Kernel", "The kernel of the field by step; a colour per temperature where it has one."),
    "queue": ("Queues", "How full the queues are, and how evenly their classes are fed."),
    "separation": ("Features", "How well the refined samples' classes are told apart in the feature space."),
}

_NOT_MEASURES = ("step", "seconds")
_COLUMNS = 3
_POINTS_MARKED = 12  # fewer are shown as dots too
_LOGARITHMIC_FROM = 50.0  # largest over smallest value, above which an axis is logarithmic
_TITLES = {"fd": "FD", "kid": "KID", "lr": "learning rate", "mse_missing": "MSE missing", "mse_all": "MSE"}
_STYLES = ("-", "--", ":", "-.")


def plot_curves(curves: Curves, prefix: str) -> Figure | None:
    """A panel for each measure `prefix/name`, with a line for each training; None where no curve has any.

    A measure `prefix/group/name` shares the panel of `name` with the other groups, which are temperatures in "kernel".

    Args:
        curves: by training the lines of its curve; a line need not have every measure.
        prefix: what the measures' names begin with; empty for those without one.
    """
    panels = _panels(curves, prefix)
    if not panels:
        return None
    num_columns = 2 if len(panels) == 4 else min(_COLUMNS, len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = Figure(figsize=(max(3.6 * num_columns, 5.2), 2.5 * num_rows + 0.6), layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    groups = list(dict.fromkeys(group for measures in panels.values() for group in measures if group))
    drawn: dict[str, None] = {}
    for panel, (title, measures) in zip(axes, panels.items(), strict=False):
        for number, (name, lines) in enumerate(curves.items()):
            for group, measure in measures.items():
                points = [(line["step"], line[measure]) for line in lines if measure in line]
                if points:
                    colour = _colour(groups.index(group)) if group else "0.35" if groups else _colour(number)
                    _draw(panel, points, colour, _STYLES[number % len(_STYLES)] if groups else _STYLES[0])
                    drawn[name] = None
        panel.set(title=_TITLES.get(title, title.replace("_", " ")), xlabel="step")
        _tidy(panel, may_be_logarithmic=title != "lr")  # a rate that falls to 0 would be nothing but its end
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    _add_legend(figure, [number for number, name in enumerate(curves) if name in drawn], list(curves), groups)
    return figure


def _add_legend(figure: Figure, numbers: Sequence[int], names: Sequence[str], groups: Sequence[str]) -> None:
    """With groups a colour is a group and a style a training; otherwise a colour is a training."""
    handles = [Line2D([], [], color=_colour(index), label=group) for index, group in enumerate(groups)]
    if len(numbers) > 1:
        for number in numbers:
            colour, style = ("0.35", _STYLES[number % len(_STYLES)]) if groups else (_colour(number), "-")
            handles.append(Line2D([], [], color=colour, linestyle=style, label=names[number]))
    if handles:
        figure.legend(
            handles=handles, frameon=False, fontsize=9, ncols=min(4, len(handles)), loc="outside lower center"
        )


def _panels(curves: Curves, prefix: str) -> dict[str, dict[str, str]]:
    """By panel title, the measures shown there, by group."""
    measures = dict.fromkeys(key for lines in curves.values() for line in lines for key in line)
    panels: dict[str, dict[str, str]] = {}
    for measure in measures:
        first, slash, rest = measure.partition("/")
        if measure in _NOT_MEASURES or (first if slash else "") != prefix:
            continue
        group, _, title = rest.rpartition("/") if slash else ("", "", measure)
        if group and prefix == "kernel":
            group = f"temperature {group}"
        panels.setdefault(title, {})[group] = measure
    return panels


def _draw(panel: Axes, points: Sequence[tuple[float, float]], colour: str, style: str) -> None:
    steps, values = np.array(points, dtype=float).T
    marker = "o" if len(points) < _POINTS_MARKED else ""
    panel.plot(steps, values, color=colour, linestyle=style, linewidth=1.2, marker=marker, markersize=3)


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _tidy(panel: Axes, may_be_logarithmic: bool) -> None:
    values = [float(value) for line in panel.lines for value in np.asarray(line.get_ydata()) if isfinite(value)]
    if may_be_logarithmic and values and min(values) > 0 and max(values) > _LOGARITHMIC_FROM * min(values):
        panel.set_yscale("log")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
