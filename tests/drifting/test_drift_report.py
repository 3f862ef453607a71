"""The page of a drifting run: its table, its curves and its pictures."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.drifting.evaluate import Scores
from latentloom.drifting.pictures import given_patches, image_grid, one_of_each_class
from latentloom.drifting.report import DriftReport, compare, kid_ratio, write_drift_report
from latentloom.drifting.report_curves import plot_curves
from latentloom.errors import ShapeError
from latentloom.runs.estimates import Estimate


def scores(fd: float, kid: float, accuracy: float = 0.9, missing: float | None = 0.25) -> Scores:
    errors = None if missing is None else Estimate(missing, missing, missing)
    return Scores(
        Estimate(fd, fd - 0.1, fd + 0.1),
        Estimate(kid, kid - 0.1, kid + 0.1),
        Estimate(accuracy, accuracy - 0.01, accuracy + 0.01),
        errors,
        errors,
        num_images=539,
    )


def filled_report() -> DriftReport:
    return DriftReport(
        introduction="digits <4 of 16>",
        settings={"seeds": [0, 1], "keep_anchors_fixed": False, "data_root": None},
        facts={"effective batch": 64},
        methods={
            "interpolation": [scores(40, 3)],
            "MSE refiner": [scores(3, 1.0), scores(5, 2.0)],
            "drifting refiner": [scores(0.5, 0.25), scores(0.75, 0.5)],
        },
        real=scores(0.3, -0.04, 0.99, None),
        baseline="MSE refiner",
        curves={"seed 0": [{"step": 0, "seconds": 0.1, "loss": 2.0}, {"step": 20, "seconds": 0.2, "loss": 1.0}]},
        grids=[("some digits", np.zeros((20, 30, 3), dtype=np.uint8))],
        diagnostics={"queue/entropy": 0.999},
    )


def rows_of(page: str) -> dict[str, list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", page)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    return {row[0]: row[1:] for row in cells if row}


def test_the_table_shows_means_ranges_and_ratios(tmp_path: Path):
    page = write_drift_report(tmp_path / "report.html", filled_report()).read_text()
    rows = rows_of(page)
    assert rows["drifting refiner, 2 seeds"] == [
        "0.625 [0.5, 0.75]",
        "0.375 [0.25, 0.5]",
        "0.25",
        "90.0 % [90.0, 90.0]",
        "0.25 [0.25, 0.25]",
    ]
    assert rows["MSE refiner, 2 seeds"][2] == "1.00"
    assert rows["interpolation"][0] == "40 [39.9, 40.1]"
    # no ratio: other images than the refined ones, so another estimate than the methods'
    real = ["0.3 [0.2, 0.4]", "-0.04 [-0.14, 0.06]", "\u2013", "99.0 % [98.0, 100.0]", "\u2013"]
    assert rows["real images"] == real
    assert rows["keep_anchors_fixed"] == ["no"]
    assert rows["seeds"] == ["0, 1"]
    assert rows["effective batch"] == ["64"]
    assert "digits &lt;4 of 16&gt;" in page
    assert page.count("<img") == 2  # the grid and the curves
    assert "the KID of drifting refiner is 0.25 times that" in page
    assert "539 training images from the held-out ones" in page
    assert "exact copies of those have an FD of 0" in page


def test_a_decision_that_is_given_replaces_the_comparison(tmp_path: Path):
    content = filled_report()
    content.decision = "keep."
    page = write_drift_report(tmp_path / "report.html", content).read_text()
    assert "Decision: keep." in page
    assert compare(content) not in page


def test_an_empty_report_is_a_page_too(tmp_path: Path):
    page = write_drift_report(tmp_path / "report.html", DriftReport()).read_text()
    assert "<h1>Drifting: refined keypatches</h1>" in page
    assert "<h2" not in page


def test_a_ratio_to_nothing_is_not_stated(tmp_path: Path):
    content = filled_report()
    content.methods = {"MSE refiner": [scores(1, -0.01)], "drifting refiner": [scores(1, 0.5)]}
    assert kid_ratio(content.methods["drifting refiner"], content.methods["MSE refiner"]) is None
    assert "times that" not in compare(content)
    rows = rows_of(write_drift_report(tmp_path / "report.html", content).read_text())
    assert rows["drifting refiner"][2] == "\u2013"


def test_curves_have_a_panel_per_measure_and_a_line_per_training_and_temperature():
    lines = [
        {"step": step, "seconds": 1.0, "loss": 3.0, "kernel/distance_gen": 1.0}
        | {f"kernel/{heat}/neighbours": 5.0 * heat for heat in (0.02, 0.2)}
        | ({"eval/fd": 2.0} if step == 0 else {})
        for step in (0, 20)
    ]
    curves = {"seed 0": lines, "seed 1": lines[:1]}
    training, kernel, evaluation = (plot_curves(curves, prefix) for prefix in ("", "kernel", "eval"))
    assert training is not None
    assert kernel is not None
    assert evaluation is not None
    assert [panel.get_title() for panel in training.axes if panel.get_visible()] == ["loss"]
    assert len(training.axes[0].lines) == 2
    assert [panel.get_title() for panel in kernel.axes if panel.get_visible()] == ["distance gen", "neighbours"]
    neighbours = kernel.axes[1].lines
    assert len(neighbours) == 4
    assert len({line.get_color() for line in neighbours}) == 2  # of temperatures
    assert len({line.get_linestyle() for line in neighbours}) == 2  # of seeds
    assert [text.get_text() for text in kernel.legends[0].texts] == [
        "temperature 0.02",
        "temperature 0.2",
        "seed 0",
        "seed 1",
    ]
    assert np.asarray(evaluation.axes[0].lines[0].get_xdata()).tolist() == [0]
    assert plot_curves(curves, "queue") is None


def test_curves_that_diverged_are_drawn(tmp_path: Path):
    content = filled_report()
    content.curves = {"seed 0": [{"step": 0, "loss": 1.0}, {"step": 20, "loss": float("nan")}]}
    assert write_drift_report(tmp_path / "report.html", content).exists()


def test_a_grid_shows_every_sample_enlarged_without_blurring():
    clean = torch.full((3, 1, 8, 8), -1.0)
    colour = torch.tensor([1.0, -1.0, 0.0]).view(1, 3, 1, 1).expand(3, 3, 8, 8)
    picture = image_grid([clean, colour], ["clean", "a long caption"], ["0", "1", "two hundred and two"])
    pixels = picture.reshape(-1, 3)
    assert (pixels == [0, 0, 0]).all(axis=1).sum() >= 3 * 64 * 64
    assert (pixels == [255, 0, 128]).all(axis=1).sum() == 3 * 64 * 64
    assert picture[0, 0].tolist() == [255, 255, 255]
    assert picture.dtype == np.uint8


def test_grids_that_do_not_fit_together_are_refused():
    samples = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ShapeError, match="2 rows of \\[2\\] samples and 1 captions"):
        image_grid([samples, samples], ["one"])
    with pytest.raises(ShapeError, match=r"\[1, 2\] samples"):
        image_grid([samples, samples[:1]], ["one", "two"])
    with pytest.raises(ShapeError, match="1 headings for 2 columns"):
        image_grid([samples], ["one"], ["0"])


def test_missing_patches_are_grey_whatever_the_size_of_the_picture():
    given = torch.tensor([[True, False, False, True]])
    shown = given_patches(torch.ones(1, 3, 6, 6), given, (2, 2))
    expected = torch.zeros(6, 6)
    expected[:3, :3] = expected[3:, 3:] = 1
    assert torch.equal(shown[0, 1], expected)


def test_images_that_are_shown_are_of_different_classes():
    labels = torch.tensor([1, 1, 0, 2, 0, 2, 1])
    assert one_of_each_class(labels, 3).tolist() == [2, 0, 3]
    assert one_of_each_class(labels, 5).tolist() == [2, 0, 3, 4, 1]
    assert one_of_each_class(labels, 99).tolist() == [2, 0, 3, 4, 1, 5, 6]
