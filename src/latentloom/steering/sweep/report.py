"""A sweep as a page with its pictures: what any model's velocity tells, and sections that others add."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from latentloom.runs import Report
from latentloom.steering.functional import Spread
from latentloom.steering.sweep.parts import Part, Units
from latentloom.steering.sweep.plots import plot_maps, plot_velocity_change, velocity_panel
from latentloom.steering.sweep.velocity import VelocitySweep
from latentloom.storage import atomic_write

TITLE = "Which blocks listen to the prompt"

#: Family -> the title of its map, and what its columns count.
TITLES = {
    "single": ("one {noun} alone", "{noun}"),
    "prefix": ("the first k", "k"),
    "suffix": ("the last k", "k"),
    "left_out": ("all but one", "left out"),
    "presets": ("presets", ""),
    "windows": ("one window", "share of the schedule"),
    "windows_prefix": ("until", "share of the schedule"),
    "windows_suffix": ("from", "share of the schedule"),
}

Families = Mapping[str, Mapping[str, Part]]
Section = Callable[[Report], Mapping[str, Figure]]
"""Adds a section to the page and returns its pictures by file name."""


def write_sweep_report(folder: Path | str, introduction: str, sections: Sequence[Section]) -> Path:
    """Write `report.html` and `plots/*.svg` into the folder; returns the page's path.

    Args:
        folder: made where it does not exist.
        introduction: what was swept, in words.
        sections: in the order of the page.

    Raises:
        FileError: the folder cannot be written to.
    """
    folder = Path(folder)
    report = Report(TITLE)
    report.paragraph(introduction)
    for section in sections:
        for name, figure in section(report).items():
            with atomic_write(folder / "plots" / f"{name}.svg") as path:
                figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    page = folder / "report.html"
    report.write(page)
    return page


def velocity_section(sweep: VelocitySweep, families: Families, units: Units) -> Section:
    """The section on the predicted velocity."""
    shown = {name: parts for name, parts in families.items() if not name.startswith("windows")}

    def add(report: Report) -> dict[str, Figure]:
        report.heading("How far the velocity moves")
        report.paragraph(
            f"The model is asked at {len(sweep.timesteps)} points of the schedule, at the latents that it passes when "
            f"it samples the base prompt, by {len(sweep.floor)} pairs. A change is relative to the length of the "
            "velocity; the floor is how far another seed's predicted clip lies, in the same unit. Late in the schedule "
            "the latents have all but decided the clip, so seeds are far apart and the floor stands high."
        )
        figures = plot_velocity(sweep, shown, units)
        for name, figure in figures.items():
            report.figure(figure, _CAPTIONS[name])
        report.table(*velocity_table(sweep, shown, units.noun))
        return figures

    return add


def plot_velocity(sweep: VelocitySweep, families: Families, units: Units) -> dict[str, Figure]:
    """The pictures of the velocity by file name."""
    figures = {}
    if "single" in families:
        figures["velocity"] = plot_velocity_change(sweep, families["single"], units.every(), units.noun)
    panels = [
        velocity_panel(sweep, title, families[name], label) for name, title, label in map_titles(families, units.noun)
    ]
    top = max(float(panel.values.max()) for panel in panels) or 1.0
    rows = [f"{timestep:.0f}" for timestep in sweep.timesteps]
    figures["velocity_map"] = plot_maps(panels, rows, "relative change", top, form="{:.2f}")
    return figures


def velocity_table(sweep: VelocitySweep, families: Families, noun: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the change by part, the mean of the points and each timestep, with 95 % intervals."""
    columns = ["prompt swapped in", "blocks", "mean", *(f"at {timestep:.0f}" for timestep in sweep.timesteps)]
    rows = [_row("another seed (floor)", None, sweep)]
    for name, parts in families.items():
        rows += [_row(named(name, label, noun), part, sweep) for label, part in parts.items()]
    return columns, rows


def named(family: str, label: str, noun: str) -> str:
    """A part's label where it stands among parts of other families."""
    if family not in ("single", "windows"):
        return label
    return f"{'window' if family == 'windows' else noun} {label} alone"


def map_titles(families: Families, noun: str) -> list[tuple[str, str, str]]:
    """Family, title and label of each map's columns; presets are in the tables alone."""
    return [
        (name, TITLES[name][0].format(noun=noun), TITLES[name][1].format(noun=noun))
        for name in families
        if name != "presets" or len(families) == 1
    ]


_CAPTIONS = {
    "velocity": "Left: the other prompt in one place alone, the mean over the points of the schedule. Right: in all "
    "places, beside the floor. Whiskers: 95 % interval of the mean over pairs.",
    "velocity_map": "Relative change of the predicted velocity, by timestep (noise on top) and by where the other "
    "prompt is swapped in.",
}


def _row(label: str, part: Part | None, sweep: VelocitySweep) -> list[str]:
    by_timestep = sweep.by_timestep(part)
    points = [f"{float(mean):.2f}" for mean in by_timestep.mean]
    return [label, part.key if part is not None else "", _with_interval(sweep.overall(part)), *points]


def _with_interval(spread: Spread) -> str:
    return f"{float(spread.mean):.3f} ({float(spread.low):.3f}-{float(spread.high):.3f})"
