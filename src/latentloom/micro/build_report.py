"""The curves of a MicroWan build, as a page and as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from latentloom.micro.build import CURVES
from latentloom.runs import Report
from latentloom.training import read_curve

_STEPS_PER_POINT = 20


def write_build_report(work: Path) -> Path:
    """Write `report.html` into a build's work folder and return its path; the build may still be running."""
    report = Report("MicroWan: build")
    curves = {name: read_curve(work / f"{name}.jsonl") for name in CURVES if (work / f"{name}.jsonl").exists()}
    report.table(
        ["stage", "steps", "minutes"],
        [[name, len(curve), round(curve[-1]["seconds"] / 60, 1)] for name, curve in curves.items() if curve],
    )
    report.figure(plot_curves(work), "Losses by step, each point the mean of 20 steps.")
    report.heading("Recipe")
    report.paragraph("The settings that reproduce this build with `latentloom micro build --config`.")
    for line in (work / "config.toml").read_text().split("\n\n"):
        report.paragraph(line.replace("\n", "; "))
    page = work / "report.html"
    report.write(page)
    return page


def plot_curves(work: Path) -> Figure:
    """One panel per stage, losses on a logarithmic axis."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    panels = figure.subplots(1, len(CURVES))
    for panel, name in zip(panels, CURVES, strict=True):
        path = work / f"{name}.jsonl"
        curve = read_curve(path) if path.exists() else []
        measures = [key for key in (curve[0] if curve else {}) if key not in ("step", "seconds", "learning_rate")]
        for measure in measures:
            values = np.array([line[measure] for line in curve])
            size = min(_STEPS_PER_POINT, max(1, len(values) // 10))
            means = values[: len(values) // size * size].reshape(-1, size).mean(axis=1)
            panel.plot(np.arange(1, len(means) + 1) * size, means, label=measure, linewidth=1.2)
        panel.set(title=name, xlabel="step", yscale="log")
        if measures:
            panel.legend(frameon=False, fontsize=8)
        panel.grid(alpha=0.25)
    return figure
