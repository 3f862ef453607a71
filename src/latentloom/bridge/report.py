"""A bridge as a page: what was trained, its curves, its scores beside their baselines, and texts to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.report_plots import plot_curves, plot_texts, plot_vectors
from latentloom.bridge.score_tables import score_tables, verdict
from latentloom.bridge.train import CURVE_NAME
from latentloom.runs import Report
from latentloom.training import read_curve

NUM_SAMPLES = 20


def write_bridge_report(folder: Path, config: BridgeConfig, scores: BridgeScores | None, data: str) -> Path:
    """Write a run's page, `report.html` in its folder, and return its path.

    Args:
        folder: of the run; its curve is shown where there is one.
        config: its settings.
        scores: on held-out pairs; None where none were scored.
        data: what was trained on, in a line.

    Raises:
        FileError: the place cannot be written to.
    """
    report = Report("Bridge: texts and sentence vectors")
    training, model = config.training, config.model
    report.paragraph(
        f"{model.pretrained_model_name_or_path}, task {training.task}, {training.num_steps} steps. Data: {data}."
    )
    if scores is not None:
        _add_scores(report, scores)
    curve = folder / CURVE_NAME
    _add_curve(report, read_curve(curve) if curve.exists() else [])
    report.heading("Settings")
    report.table(["setting", "value"], list(flat(config.model_dump(mode="json")).items()))
    return _write(report, folder)


def write_evaluation_report(folder: Path, scores: BridgeScores, facts: Mapping[str, Any]) -> Path:
    """Write the page of an evaluation alone, `report.html` in a folder, and return its path.

    Args:
        folder: where to.
        scores: on held-out pairs.
        facts: what was measured on what, by name.

    Raises:
        FileError: the place cannot be written to.
    """
    report = Report("Bridge: evaluation")
    _add_scores(report, scores)
    report.heading("What was measured")
    report.table(["fact", "value"], list(flat(facts).items()))
    return _write(report, folder)


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings of sections by their dotted names, with values that a table can show."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{before}{name}.")
        elif isinstance(value, list | tuple):
            values[f"{before}{name}"] = ", ".join(map(str, value)) or None
        else:
            values[f"{before}{name}"] = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    return values


def _add_scores(report: Report, scores: BridgeScores) -> None:
    sentences = [*verdict(scores), *scores.notes]
    report.paragraph("\n\n".join(sentences))
    report.heading(f"Scores on {scores.num_texts} held-out texts")
    report.paragraph(
        "In brackets the 95 % interval over texts. Shuffled vectors are those of other texts; training text is the one "
        "whose vector is nearest, by cosine; the best of several draws is the one whose own vector is nearest; ridge "
        "is a linear regression on the same features. Cosines of texts are of their own vectors"
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


def _add_curve(report: Report, curve: Sequence[Mapping[str, float]]) -> None:
    if figure := plot_curves(curve):
        report.heading("Training")
        report.figure(
            figure,
            "By step. text_loss: cross-entropy of the texts in nats per token; text_acc: share of tokens that were "
            "thought most likely; latent_loss: mean squared error of standardised vectors, 1 for the mean vector.",
        )


def _write(report: Report, folder: Path) -> Path:
    page = folder / "report.html"
    report.write(page)
    return page
