"""The page of a training: what is out says why, and every run has a line of its own."""

from dataclasses import astuple
from itertools import product
from pathlib import Path

import numpy as np
import torch

from latentloom.delta.baselines import NO_ADAPTER, RIDGE
from latentloom.delta.config import CAPS, TrainConfig
from latentloom.delta.history import History
from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.delta.split import Split
from latentloom.delta.train import Candidate, Training
from latentloom.delta.training_report import plot_choice, plot_scores, write_training_report
from latentloom.delta.validation import LARGEST_DRIFT, Score

BEFORE = Score(0.4, 0.5, 0.0)


def trained(name: str, cap: float, scores: list[Score]) -> Candidate:
    """A candidate with a made-up history."""
    history = History(BEFORE)
    for score in scores:
        history.append(torch.zeros(5), score, 0.1)
    return Candidate(name, EmbeddingDelta(DeltaConfig(d_model=4, rank=1, cap=cap)), history.best_score, 0.1, history)


def training(*candidates: Candidate) -> Training:
    """A training that tried no adapter, ridge and these."""
    baseline = EmbeddingDelta(DeltaConfig(d_model=4, rank=1, cap=None, gated=False))
    baselines = [Candidate(NO_ADAPTER, baseline, BEFORE), Candidate(RIDGE, baseline, Score(0.7, 0.3, 0.2))]
    return Training([*baselines, *candidates], BEFORE, Split([0, 1], [2], [3]))


def twelve() -> list[Candidate]:
    """As many runs as `--cap auto --init auto` makes."""
    scores = [Score(0.41, 0.5, 1e-3), Score(0.42, 0.5, 2e-3)]
    return [trained(f"SGD from {init}, cap {cap:g}", cap, scores) for cap, init in product(CAPS, ["zero", "a", "b"])]


def test_a_candidate_that_is_out_says_why(tmp_path: Path) -> None:
    drifting = trained("SGD from zero, cap 2", 2.0, [Score(0.6, 0.5, 2 * LARGEST_DRIFT)])
    good = trained("SGD from zero, cap 1", 1.0, [Score(0.5, 0.5, 1e-3)])
    page = write_training_report(training(drifting, good), TrainConfig(), tmp_path, "some cache").read_text()
    rows = {row.split("</td>")[0].split(">")[-1]: row.split("</tr>")[0] for row in page.split("<tr>") if "<td" in row}
    assert "out: R@1 and drift" in rows[RIDGE]
    assert "out: drift" in rows[drifting.name]
    assert "chosen" in rows[good.name]
    assert "out" not in rows[good.name]
    assert "out" not in rows[NO_ADAPTER]


def test_every_run_has_a_colour_of_its_own() -> None:
    figure = plot_scores(twelve(), BEFORE)
    for panel in figure.axes:
        runs = [line for line in panel.lines if str(line.get_label()).startswith("SGD")]
        colours = {str(line.get_color()) for line in runs}
        assert len(colours) == 12


def test_the_axis_of_the_drift_has_labels_and_shows_runs_without_any() -> None:
    none = trained("SGD from zero, cap 1", 1.0, [Score(0.41, 0.5, 0.0), Score(0.42, 0.5, 3e-3)])
    panel = plot_scores([none], BEFORE).axes[-1]
    low, high = panel.get_ylim()
    assert 0 < low <= 1e-7
    assert high >= LARGEST_DRIFT
    assert np.asarray(panel.lines[0].get_ydata()).min() >= low


def test_a_run_that_diverged_does_not_lose_the_page(tmp_path: Path) -> None:
    broken = trained("SGD from zero, cap 1", 1.0, [Score(*[float("nan")] * len(astuple(BEFORE)))])
    assert "nan" in write_training_report(training(broken), TrainConfig(), tmp_path, "some cache").read_text()


def test_the_choice_shows_every_candidate_and_hollow_what_is_out() -> None:
    runs = twelve()
    panel = plot_choice(training(*runs)).axes[0]
    dots = [line for line in panel.lines if line.get_marker() in ("o", "s")]
    assert len(dots) == 2 + len(runs)
    assert [line.get_markerfacecolor() == "none" for line in dots] == [False, True, *[False] * len(runs)]
