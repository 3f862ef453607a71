"""A training of a refiner as a page: what was run, what it reached beside other methods, pictures, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from numpy import ndarray

from latentloom.drifting.evaluate import Scores, aggregate
from latentloom.drifting.report_curves import CURVE_PANELS, plot_curves
from latentloom.drifting.report_tables import add_table
from latentloom.runs import Report
from latentloom.runs.estimates import Estimate

REAL = "real images"


@dataclass
class DriftReport:
    """What the page shows; whatever is left empty is left out.

    Attributes:
        title: of the page.
        introduction: what was trained on what, in a sentence or two.
        settings: by name, such as `config.model_dump(mode="json")`.
        facts: what the run came to, by name: effective batch, throughput, seconds, device.
        methods: by name the scores of one or more seeds, in the table's order: interpolation, MSE, drifting.
        real: scores of other real images, from `score_real`.
        baseline: the method whose KID the others' is divided by.
        subject: the method that the decision is about; the last one where not given.
        curves: by name (such as "drifting, seed 0") the lines that `training.read_curve` gives.
        grids: captions and pictures, from `image_grid`.
        diagnostics: figures of the last logged step, by name.
        decision: what follows from the scores; a plain comparison where not given.
    """

    title: str = "Drifting: refined keypatches"
    introduction: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    methods: Mapping[str, Sequence[Scores]] = field(default_factory=dict)
    real: Scores | None = None
    baseline: str | None = None
    subject: str | None = None
    curves: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    grids: Sequence[tuple[str, UInt8[ndarray, "_ _ 3"]]] = ()
    diagnostics: Mapping[str, float | None] = field(default_factory=dict)
    decision: str = ""


def write_drift_report(path: Path | str, content: DriftReport) -> Path:
    """Write the page as one HTML file and return its path.

    Raises:
        FileError: the place cannot be written to.
    """
    report = Report(content.title)
    if content.introduction:
        report.paragraph(content.introduction)
    decision = content.decision or compare(content)
    if decision:
        report.paragraph(f"Decision: {decision}" if content.decision else decision)
    if content.methods:
        _add_scores(report, content)
    add_table(report, "What was run", "fact", content.facts)
    if content.grids:
        report.heading("Images")
        for caption, picture in content.grids:
            report.image(picture, caption)
    for prefix, (heading, caption) in CURVE_PANELS.items():
        figure = plot_curves(content.curves, prefix)
        if figure is not None:
            report.heading(heading)
            report.figure(figure, caption)
    add_table(report, "Diagnostics of the last step", "figure", content.diagnostics)
    add_table(report, "Settings", "setting", content.settings)
    report.write(path)
    return Path(path)


def compare(content: DriftReport) -> str:
    """The subject's scores beside the baseline's, in a sentence or two; empty without scores."""
    if not content.methods:
        return ""
    subject = content.subject or list(content.methods)[-1]
    found = aggregate(content.methods[subject])
    name = f"{subject[:1].upper()}{subject[1:]}"
    text = (
        f"{name}: FD {found.fd.value:.3g}, KID {found.kid.value:.3g}, {100 * found.accuracy.value:.1f} % of the "
        "images read as their class."
    )
    if content.baseline is None or content.baseline == subject:
        return text
    other = aggregate(content.methods[content.baseline])
    ratio = kid_ratio(content.methods[subject], content.methods[content.baseline])
    times = "" if ratio is None else f", and the KID of {subject} is {ratio:.2f} times that"
    return (
        f"{text} {content.baseline}: FD {other.fd.value:.3g}, KID {other.kid.value:.3g}, "
        f"{100 * other.accuracy.value:.1f} %{times}."
    )


def kid_ratio(scores: Sequence[Scores], baseline: Sequence[Scores]) -> float | None:
    """The mean KID over the baseline's mean KID; None where that is 0 or below, and nothing can be told."""
    below = aggregate(baseline).kid.value
    return aggregate(scores).kid.value / below if below > 0 else None


def _add_scores(report: Report, content: DriftReport) -> None:
    report.heading("Scores on held-out images")
    columns = ["method", "FD", "KID", "accuracy", "MSE missing"]
    if content.baseline is not None:
        columns.insert(3, "KID ratio")
    rows = []
    real = {} if content.real is None else {REAL: [content.real]}
    for name, scores in {**real, **content.methods}.items():
        found = aggregate(scores)
        row = [
            f"{name}, {found.num_seeds} seeds" if found.num_seeds > 1 else name,
            _with_interval(found.fd),
            _with_interval(found.kid),
            _with_interval(found.accuracy, percent=True),
            _with_interval(found.mse_missing),
        ]
        if content.baseline is not None:
            ratio = None if name == REAL else kid_ratio(scores, content.methods[content.baseline])
            row.insert(3, None if ratio is None else f"{ratio:.2f}")
        rows.append(row)
    report.table(columns, rows)
    if content.baseline is not None:
        report.paragraph(f"KID ratio: the KID divided by that of {content.baseline}; the unit of KID cancels out.")
    several = any(len(scores) > 1 for scores in content.methods.values())
    report.paragraph(
        ("In brackets: the smallest and largest of the seeds, or, without seeds, " if several else "In brackets: ")
        + "the 95 % interval over images. FD and KID are distances from the clean held-out images in the features of "
        "a classifier that no refiner is trained against; lower is better, and a KID below 0 is chance. Accuracy is "
        "the share of images that it reads as their class. FD grows with fewer images, so compare it only within "
        "this table."
    )
    if content.real is not None:
        report.paragraph(
            f"The row \u201c{REAL}\u201d says how far apart two sets of real images are: FD and KID of "
            f"{content.real.num_images} training images from the held-out ones, and the classifier's accuracy on the "
            "clean held-out images. It is no bound: a method's images are compared with the very images they were made "
            "from, and exact copies of those have an FD of 0."
        )


def _with_interval(estimate: Estimate | None, percent: bool = False) -> str | None:
    if estimate is None:
        return None
    numbers = (estimate.value, estimate.low, estimate.high)
    value, low, high = (f"{100 * number:.1f}" if percent else f"{number:.3g}" for number in numbers)
    return f"{value}{' %' if percent else ''} [{low}, {high}]"
