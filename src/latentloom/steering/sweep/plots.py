"""The pictures of a sweep: heat maps over parts, and what each unit contributes, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from latentloom.steering.functional import Spread
from latentloom.steering.sweep.attribution import Contributions
from latentloom.steering.sweep.parts import Part
from latentloom.steering.sweep.velocity import VelocitySweep

_MAX_COLUMNS_IN_A_ROW = 26
_MAX_COLUMNS_WITH_NUMBERS = 15
_LONGEST_LEVEL_NAME = 3  # longer names of columns are written upwards
CONTRIBUTIONS_HEIGHT = 2.5
_TICKS = 20
# Okabe and Ito's colours, which people with any colour vision tell apart
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_GRAY = "0.62"


@dataclass(frozen=True, eq=False)
class Panel:
    """One heat map of several that share their rows and their scale.

    Args:
        title: above it.
        columns: labels.
        values: R rows.
        label: below the columns.
    """

    title: str
    columns: Sequence[str]
    values: Float[Tensor, "R C"]
    label: str = ""


def plot_maps(panels: Sequence[Panel], rows: Sequence[str], label: str, top: float, form: str = "{:.0f}") -> Figure:
    """Heat maps side by side, or one below the other where they are wide; see `draw_maps`."""
    figure = Figure(figsize=(9, maps_height(panels, rows)), layout="constrained")
    draw_maps(figure, panels, rows, label, top, form)
    return figure


def maps_height(panels: Sequence[Panel], rows: Sequence[str]) -> float:
    """Inches that these maps need."""
    if _are_stacked(panels):
        return (1.0 + 0.3 * len(rows)) * len(panels)
    longest = max(len(name) for panel in panels for name in panel.columns)
    return 1.0 + 0.36 * len(rows) + (0.07 * longest if longest > _LONGEST_LEVEL_NAME else 0)


def draw_maps(
    figure: Figure | SubFigure,
    panels: Sequence[Panel],
    rows: Sequence[str],
    label: str,
    top: float,
    form: str = "{:.0f}",
) -> None:
    """Heat maps into a figure; numbers stand in the cells where there is room.

    Args:
        figure: where to.
        panels: at least one.
        rows: their labels.
        label: of the scale, which goes from 0 to
        top: its end.
        form: of a number in a cell.
    """
    widths, stacked = [len(panel.columns) for panel in panels], _are_stacked(panels)
    if stacked:
        grid = figure.subplots(len(panels), 1, squeeze=False)
    else:
        grid = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)
    axes = list(grid.flat)
    scale = ScalarMappable(Normalize(0, top), "viridis")
    for place, (panel, axis) in enumerate(zip(panels, axes, strict=True)):
        axis.imshow(panel.values.numpy(), aspect="auto", norm=scale.norm, cmap=scale.cmap)
        if max(widths) <= _MAX_COLUMNS_WITH_NUMBERS:
            for (row, column), value in np.ndenumerate(panel.values.numpy()):
                colour = "white" if sum(scale.cmap(value / top)[:3]) < 1.5 else "black"
                axis.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=8)
        axis.set_title(panel.title, fontsize=9)
        axis.set_yticks(range(len(rows)), rows if stacked or place == 0 else [""] * len(rows), fontsize=9)
        _name_columns(axis, panel.columns)
        axis.set_xlabel(panel.label, fontsize=9)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.colorbar(scale, ax=axes, label=label, pad=0.01)


def plot_contributions(
    contributions: Mapping[str, Contributions], names: Sequence[str], label: str, noun: str
) -> Figure:
    """Bars with intervals, one panel for each effect; see `draw_contributions`."""
    figure = Figure(figsize=(9, CONTRIBUTIONS_HEIGHT), layout="constrained")
    draw_contributions(figure, contributions, names, label, noun)
    return figure


def draw_contributions(
    figure: Figure | SubFigure,
    contributions: Mapping[str, Contributions],
    names: Sequence[str],
    label: str,
    noun: str,
) -> None:
    """Bars with intervals into a figure, in percentage points.

    Args:
        figure: where to.
        contributions: effect -> what each unit contributes, as shares.
        names: of the units.
        label: of the effects' common axis.
        noun: what a unit is.
    """
    panels = figure.subplots(1, len(contributions), sharey=True, squeeze=False).flat
    for number, (panel, (name, found)) in enumerate(zip(panels, contributions.items(), strict=True)):
        means, low, high = (100 * ends.numpy() for ends in (found.mean, found.low, found.high))
        places = np.arange(len(names))
        panel.bar(places, means, 0.72, color=COLOURS[number % len(COLOURS)])
        _whiskers(panel, places, means, low, high)
        panel.axhline(0, color="0.3", linewidth=0.8)
        panel.set_title(name, fontsize=10)
        _name_columns(panel, names)
        panel.set_xlabel(noun, fontsize=9)
        plain(panel)
        if number == 0:
            panel.set_ylabel(label, fontsize=9)


def plot_velocity_change(sweep: VelocitySweep, singles: Mapping[str, Part], every: Part, noun: str) -> Figure:
    """Left, the change of the velocity by each unit alone; right, by all of them, by timestep, beside the floor."""
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(singles))
    spreads = [sweep.overall(part) for part in singles.values()]
    means, low, high = (np.array([float(getattr(each, end)) for each in spreads]) for end in ("mean", "low", "high"))
    left.bar(places, means, 0.72, color=COLOURS[0])
    _whiskers(left, places, means, low, high)
    _name_columns(left, list(singles))
    left.set(xlabel=f"{noun}, alone", ylabel="relative change of the velocity")
    plain(left)
    _by_timestep(right, sweep, None, "another seed (floor)", _GRAY)
    if every in sweep.changes:
        _by_timestep(right, sweep, every, f"all {noun}s", COLOURS[1])
    right.set_xticks(range(len(sweep.timesteps)), [f"{timestep:.0f}" for timestep in sweep.timesteps])
    right.set(xlabel="timestep", ylim=(0, None))
    right.legend(frameon=False, fontsize=9)
    plain(right)
    return figure


def velocity_panel(sweep: VelocitySweep, title: str, parts: Mapping[str, Part], label: str = "") -> Panel:
    """A heat map of mean changes, timesteps from noise down."""
    values = torch.stack([sweep.by_timestep(part).mean for part in parts.values()], dim=1)
    return Panel(title, short_labels(parts), values, label)


def short_labels(parts: Mapping[str, Part]) -> list[str]:
    """What tells the parts of one family apart: `first 2` becomes `2`."""
    return [label.rsplit(" ", 1)[-1] for label in parts]


def plain(axes: Axes) -> None:
    """No frame, a faint grid behind."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.25)


def _are_stacked(panels: Sequence[Panel]) -> bool:
    return sum(len(panel.columns) for panel in panels) > _MAX_COLUMNS_IN_A_ROW


def _by_timestep(axes: Axes, sweep: VelocitySweep, part: Part | None, label: str, colour: str) -> None:
    spread: Spread = sweep.by_timestep(part)
    means, low, high = (ends.numpy() for ends in (spread.mean, spread.low, spread.high))
    places = np.arange(len(means))
    axes.errorbar(places, means, yerr=[means - low, high - means], color=colour, marker="o", capsize=3, label=label)


def _whiskers(axes: Axes, places: np.ndarray, means: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    axes.errorbar(places, means, yerr=[means - low, high - means], fmt="none", ecolor="0.2", elinewidth=1, capsize=2.5)


def _name_columns(axes: Axes, names: Sequence[str]) -> None:
    step = max(1, -(-len(names) // _TICKS))
    turned = max(map(len, names)) > _LONGEST_LEVEL_NAME
    axes.set_xticks(
        range(0, len(names), step),
        names[::step],
        fontsize=8,
        rotation=90 if turned else 0,
    )
