"""What a sweep over MicroWan's blocks shows of each attribute: maps, contributions, fates and clips."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from torch import Tensor

from latentloom.micro.report import format_accuracy
from latentloom.micro.steering_sweep import AttributeSweep
from latentloom.runs import Report
from latentloom.steering.sweep.attribution import Contributions, mean_contributions, shapley_values
from latentloom.steering.sweep.parts import Part, Units, plain_orders
from latentloom.steering.sweep.plots import (
    CONTRIBUTIONS_HEIGHT,
    Panel,
    draw_contributions,
    draw_maps,
    maps_height,
    plain,
    plot_contributions,
    plot_maps,
    short_labels,
)
from latentloom.steering.sweep.report import Families, Section, map_titles, named

Clips = Sequence[tuple[str, UInt8[Tensor, "T H W 3"], float]]
_FATES = {"injected": "#d55e00", "base": "#0072b2", "neither": "0.75"}


def contributions_of(
    sweep: AttributeSweep, units: Units, orders: Sequence[Sequence[int]] | None = None
) -> dict[str, Contributions]:
    """What each unit contributes to every attribute's following the injected prompt, as shares of the pairs.

    Args:
        sweep: its readings hold the parts that are needed.
        units: blocks or windows.
        orders: in which units are added; None takes all subsets, for exact Shapley values.
    """
    found = {}
    for name in sweep.attributes:

        def value_of(places: Sequence[int], name: str = name) -> Tensor:
            return sweep.shows_injected(units.join(places), name)

        per_pair = shapley_values(value_of, len(units)) if orders is None else mean_contributions(value_of, orders)
        found[name] = Contributions.of(per_pair)
    return found


def window_contributions(sweep: AttributeSweep, windows: Units) -> dict[str, Contributions]:
    """The same by windows of the schedule, from the two orders that neighbours allow."""
    return contributions_of(sweep, windows, plain_orders(len(windows)))


def verdict(sweep: AttributeSweep, every: Part, contributions: Mapping[str, Contributions], units: Units) -> list[str]:
    """One sentence on all blocks, then one per attribute on the units that carry it, in plain words."""
    sentences = []
    if every in sweep.readings:
        shares = ", ".join(
            f"{name} in {format_accuracy(sweep.outcome(every, name).injected)} %" for name in sweep.attributes
        )
        sentences.append(f"With the other prompt in all blocks the clips follow it: {shares}.")
    for name, found in contributions.items():
        total = float(found.mean.sum())
        sure = [place for place in found.mean.argsort(descending=True).tolist() if float(found.low[place]) > 0]
        parts = [f"{units.names[place]} ({100 * float(found.mean[place]):.0f})" for place in sure]
        carried = ", ".join(parts) if parts else f"no {units.noun} surely"
        sentences.append(f"{name}: of {100 * total:.0f} points, by {units.noun}: {carried}.")
    return sentences


def attribute_section(
    sweep: AttributeSweep,
    families: Families,
    units: Units,
    contributions: Mapping[str, Contributions],
    method: str,
) -> Section:
    """The section on blocks.

    Args:
        sweep: the readings.
        families: parts of the map.
        units: of blocks.
        contributions: by attribute; may be empty.
        method: how they were had, in words.
    """
    shown = {name: parts for name, parts in families.items() if not name.startswith("windows")}

    def add(report: Report) -> dict[str, Figure]:
        report.heading("Which blocks carry which attribute")
        report.paragraph(
            f"{len(sweep.pairs)} pairs of held-out prompts that differ in what they ask for. Each pair is sampled from "
            "the same noise with the other prompt swapped in, in some blocks, and the clip is read. Percent of the "
            "clips that show the other prompt's value."
        )
        report.paragraph("\n\n".join(verdict(sweep, units.every(), contributions, units)))
        figures = {"attributes": plot_attributes(sweep, shown, units, contributions)}
        caption = "Percent of clips that show the other prompt's value, by the blocks in which it is swapped in."
        if contributions:
            caption += (
                f" Below, what each {units.noun} adds to that share: {method}. Whiskers: 95 % bootstrap interval over "
                "pairs."
            )
        report.figure(figures["attributes"], caption)
        if contributions:
            report.table(*contributions_table(contributions, units))
        if "single" in shown:
            figures["fates"] = plot_fates(sweep, shown["single"], f"{units.noun} alone")
            report.figure(figures["fates"], f"Whose value the clips show, by the only {units.noun} that is swapped.")
        report.table(*outcome_table(sweep, shown, units.noun))
        report.paragraph("Percent that follow the other prompt; in brackets the 95 % Wilson score interval.")
        return figures

    return add


def window_section(
    sweep: AttributeSweep, families: Families, windows: Units, contributions: Mapping[str, Contributions]
) -> Section:
    """The section on windows of the schedule."""
    shown = {name: parts for name, parts in families.items() if name.startswith("windows")}

    def add(report: Report) -> dict[str, Figure]:
        report.heading("When in the schedule")
        report.paragraph(
            "The other prompt in all blocks, but only during a share of the schedule's steps; 0 is pure noise, 1 the "
            "finished clip."
        )
        figures = {"windows": plot_maps(_panels(sweep, shown, windows.noun), sweep.attributes, "% of clips", 100.0)}
        report.figure(figures["windows"], "Percent of clips that show the other prompt's value.")
        if contributions:
            figures["window_contributions"] = plot_contributions(
                contributions, windows.names, "percentage points", "share of the schedule"
            )
            report.figure(
                figures["window_contributions"],
                "What each window adds: the mean of its contribution when windows are added from the first on and from "
                "the last on. Whiskers: 95 % bootstrap interval over pairs.",
            )
        report.table(*outcome_table(sweep, shown, windows.noun))
        return figures

    return add


def clips_section(rows: Sequence[tuple[str, Clips]]) -> Section:
    """The section of examples: per pair a text, and its clips with captions and frames per second."""

    def add(report: Report) -> dict[str, Figure]:
        report.heading("Clips")
        for text, clips in rows:
            report.paragraph(text)
            report.clips(clips)
        return {}

    return add


def plot_attributes(
    sweep: AttributeSweep, families: Families, units: Units, contributions: Mapping[str, Contributions]
) -> Figure:
    """Heat maps of attributes by part, percent that follow the injected prompt, above each unit's contributions."""
    panels = _panels(sweep, families, units.noun)
    if not contributions:
        return plot_maps(panels, sweep.attributes, "% of clips", 100.0)
    heights = (maps_height(panels, sweep.attributes), CONTRIBUTIONS_HEIGHT)
    figure = Figure(figsize=(9, sum(heights)), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=heights)
    above, below = (figure.add_subfigure(cell) for cell in (grid[0], grid[1]))
    draw_maps(above, panels, sweep.attributes, "% of clips", 100.0)
    draw_contributions(below, contributions, units.names, "percentage points", units.noun)
    return figure


def plot_fates(sweep: AttributeSweep, parts: Mapping[str, Part], label: str) -> Figure:
    """Stacked bars per attribute: clips that follow the injected prompt, the base prompt, or neither."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    panels = figure.subplots(1, len(sweep.attributes), sharey=True, squeeze=False).flat
    places = np.arange(len(parts))
    for panel, name in zip(panels, sweep.attributes, strict=True):
        outcomes = [sweep.outcome(part, name) for part in parts.values()]
        bottom = np.zeros(len(parts))
        for fate, colour in _FATES.items():
            shares = np.array([100 * getattr(outcome, fate).share for outcome in outcomes])
            panel.bar(places, shares, 0.78, bottom=bottom, color=colour, label=fate)
            bottom += shares
        panel.set_title(name, fontsize=10)
        panel.set_xticks(places, short_labels(parts), fontsize=8)
        panel.set_xlabel(label, fontsize=9)
        plain(panel)
    figure.axes[0].set_ylabel("% of clips", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def outcome_table(sweep: AttributeSweep, families: Families, noun: str) -> tuple[list[str], list[list[str | None]]]:
    """Columns and rows: percent that follow the injected prompt by part and attribute, with intervals."""
    rows: list[list[str | None]] = []
    for family, parts in families.items():
        for label, part in parts.items():
            shares = (format_accuracy(sweep.outcome(part, name).injected) for name in sweep.attributes)
            rows.append([named(family, label, noun), *shares])
    return ["prompt swapped in", *sweep.attributes], rows


def contributions_table(
    contributions: Mapping[str, Contributions], units: Units
) -> tuple[list[str], list[list[str | None]]]:
    """Columns and rows: points that each unit adds, with intervals, and their sum."""
    rows: list[list[str | None]] = [
        [name, *(_points(found, place) for found in contributions.values())] for place, name in enumerate(units.names)
    ]
    rows.append(["sum", *(f"{100 * float(found.mean.sum()):.1f}" for found in contributions.values())])
    return [units.noun, *contributions], rows


def _panels(sweep: AttributeSweep, families: Families, noun: str) -> list[Panel]:
    return [
        Panel(title, short_labels(families[family]), _percents(sweep, families[family]), label)
        for family, title, label in map_titles(families, noun)
    ]


def _points(found: Contributions, place: int) -> str:
    mean, low, high = (100 * float(values[place]) for values in (found.mean, found.low, found.high))
    mean = round(mean, 1) + 0.0  # adding nothing takes the sign off what rounds to nothing
    return f"{mean:.1f} ({round(low)} to {round(high)})"


def _percents(sweep: AttributeSweep, parts: Mapping[str, Part]) -> Tensor:
    return torch.tensor(
        [[100 * sweep.outcome(part, name).injected.share for part in parts.values()] for name in sweep.attributes]
    )
