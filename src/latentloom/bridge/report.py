"""A bridge as a page: what was trained, its curves, its scores beside their baselines, and texts to read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.report_plots import plot_curves, plot_texts, plot_vectors
from latentloom.bridge.score_tables import score_tables, verdict
from latentloom.runs import Report

NUM_SAMPLES = 20


@dataclass(frozen=True, eq=False)
class BridgeReport:
    """What the page shows.

    Attributes:
        introduction: what was trained on what, or what was scored, in a sentence or two.
        scores: on held-out pairs; None where none were scored.
        curve: lines of the training, as `training.read_curve` gives them; empty without one.
        facts: what the run came to, by name.
        settings: by name.
        title: of the page.
    """

    introduction: str
    scores: BridgeScores | None = None
    curve: Sequence[Mapping[str, float]] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    title: str = "Bridge: texts and sentence vectors"


def write_bridge_report(path: Path | str, content: BridgeReport) -> Path:
    """Write the page as one HTML file and return its path.

    Raises:
        FileError: the place cannot be written to.
    """
    report = Report(content.title)
    report.paragraph(content.introduction)
    if content.scores is not None:
        _add_scores(report, content.scores)
    if figure := plot_curves(content.curve):
        report.heading("Training")
        report.figure(
            figure,
            "By step. text_loss: cross-entropy of the texts in nats per token; text_acc: share of tokens that were "
            "thought most likely; latent_loss: mean squared error of standardised vectors, 1 for the mean vector.",
        )
    _add_values(report, "What was run", "fact", content.facts)
    _add_values(report, "Settings", "setting", flat(content.settings))
    report.write(path)
    return Path(path)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings of sections by their dotted names."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        values |= flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return values


def _add_scores(report: Report, scores: BridgeScores) -> None:
    sentences = [*verdict(scores), *scores.notes]
    report.paragraph("\n\n".join(sentences))
    report.heading(f"Scores on {scores.num_texts} held-out texts")
    report.paragraph(
        "In brackets the 95 % interval over texts. Cosines of texts are of their own vectors"
        + (f", made by {scores.encoder}," if scores.encoder else "")
        + " to the true ones; a centred cosine takes the mean training vector off both, so that what all sentences "
        "share does not count. R2 is the share of the squared distance to the mean training vector that is explained; "
        "R@1 the share of texts whose true vector is nearest to the predicted one among all held-out texts."
    )
    for table in score_tables(scores):
        report.paragraph(table.heading + ".")
        report.table(table.columns, table.rows)
    if figure := plot_texts(scores):
        report.figure(figure, "Decoded texts (blue) and their baselines (grey), with 95 % intervals over texts.")
    if figure := plot_vectors(scores):
        report.figure(figure, "Predicted vectors (blue) and their baselines (grey), with 95 % intervals over texts.")
    if scores.samples:
        _add_samples(report, scores)


def _add_samples(report: Report, scores: BridgeScores) -> None:
    report.heading("Texts")
    report.paragraph("Held-out texts, and what was decoded from their vectors; they are not chosen.")
    columns = {"text": "true text", "greedy": scores.label("greedy")}
    if any(sample.best is not None for sample in scores.samples):
        columns["best"] = scores.label("best_of")
    if any(sample.nearest is not None for sample in scores.samples):
        columns["nearest"] = scores.label("nearest_training")
    shown = scores.samples[:NUM_SAMPLES]
    report.table(list(columns.values()), [[getattr(sample, name) for name in columns] for sample in shown])


def _add_values(report: Report, heading: str, column: str, values: Mapping[str, Any]) -> None:
    if values:
        report.heading(heading)
        report.table([column, "value"], [[name, _stated(value)] for name, value in values.items()])


def _stated(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or None
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
