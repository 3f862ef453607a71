"""The curves of a build as a page, also while it runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from latentloom.micro.build_report import plot_curves, write_build_report


def write_curve(path: Path, num_steps: int, **measures: float) -> None:
    lines = [{"step": step, "seconds": 30.0 * (step + 1), **measures} for step in range(num_steps)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_build_has_a_page_of_its_stages_and_settings(finished_build):
    work, _ = finished_build
    page = write_build_report(work)
    assert page == work / "report.html"
    html = page.read_text("utf-8")
    assert "transformer" in html
    assert "num_clips = 64" in html
    assert "data:image/svg+xml" in html


def test_a_build_that_still_runs_has_a_page_of_what_is_there(tmp_path):
    write_curve(tmp_path / "vae.jsonl", 4, l1=0.5)
    (tmp_path / "text.jsonl").write_text("")
    (tmp_path / "config.toml").write_text("seed = 3\n")
    html = write_build_report(tmp_path).read_text("utf-8")
    assert "seed = 3" in html
    assert ">vae</td>" in html.replace("\n", "")
    assert ">2</td>" in html  # four steps of half a minute
    assert ">text</td>" not in html


def test_a_curve_is_smoothed_over_twenty_steps_and_drawn_on_a_logarithmic_axis(tmp_path):
    write_curve(tmp_path / "vae.jsonl", 250, l1=0.5, mse=0.25)
    write_curve(tmp_path / "transformer.jsonl", 3, loss=2.0, learning_rate=1.0)
    vae, text, transformer = plot_curves(tmp_path).axes
    assert [panel.get_title() for panel in (vae, text, transformer)] == ["vae", "text", "transformer"]
    assert [line.get_label() for line in vae.lines] == ["l1", "mse"]
    assert np.asarray(vae.lines[0].get_xdata()).tolist() == list(range(20, 241, 20))
    assert np.asarray(vae.lines[0].get_ydata()).tolist() == pytest.approx([0.5] * 12)
    assert vae.get_yscale() == "log"
    assert len(text.lines) == 0
    assert [line.get_label() for line in transformer.lines] == ["loss"]
    assert np.asarray(transformer.lines[0].get_ydata()).tolist() == [2.0] * 3
