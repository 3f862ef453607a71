"""Evaluations as a page, a chart and a contact sheet."""

import re

import pytest
from PIL import Image

from latentloom.micro.attributes import VALUES
from latentloom.micro.evaluate import evaluate
from latentloom.micro.report import describe, format_accuracy, plot_accuracy, write_report, write_sheet
from latentloom.micro.score import Accuracy, prompt_set, questions_of


@pytest.fixture
def evaluations(listener):
    """The same questions in two wordings, the second model blind to colour, and another set."""
    colour_blind = listener(ignored=("colour",))
    return [
        evaluate(listener(), "verbose", prompt_set("verbose", 7)),
        evaluate(colour_blind, "terse", prompt_set("terse", 7)),
        evaluate(listener(), "by hand", questions_of(["a <red> circle"])),
    ]


def test_a_report_is_one_page_that_needs_no_network(evaluations, tmp_path):
    page = write_report(evaluations, 8, tmp_path / "new" / "folder", "MicroWan: <score>", "What was measured.")
    assert page == tmp_path / "new" / "folder" / "report.html"
    assert sorted(path.name for path in page.parent.iterdir()) == ["contact_sheet.png", "report.html"]
    html = page.read_text("utf-8")
    sources = re.findall(r"""(?:src|href|poster|xlink:href)\s*=\s*["']([^"']*)""", html) + re.findall(
        r"url\(([^)]*)\)", html
    )
    assert sources
    assert [source[:60] for source in sources if not source.strip("\"'").startswith(("data:", "#"))] == []
    assert "@import" not in html
    assert "MicroWan: &lt;score&gt;" in html
    assert "a &lt;red&gt; circle" in html
    assert "What was measured." in html


def test_a_report_shows_every_figure_with_its_interval_and_a_guess(evaluations, tmp_path):
    html = write_report(evaluations, 8, tmp_path, "x").read_text("utf-8")
    assert "100.0 (65-100)" in html  # 7 of 7
    assert "16.7" in html  # a guess of six colours
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", html)
    row = cells[cells.index("by hand") :][:8]
    assert row[1] == "1"
    assert row[4:7] == ["\u2013"] * 3  # size, motion and background were not asked for


def test_a_report_shows_comparable_clips_side_by_side_and_not_all_of_them(evaluations, tmp_path):
    html = write_report(evaluations, 8, tmp_path, "x").read_text("utf-8")
    assert html.count("<video") == 6 * 2 + 1
    captions = re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", html, re.DOTALL)
    clips = [caption for caption in captions if "terse: " in caption or "verbose: " in caption]
    assert ["verbose: " in caption for caption in clips] == [True, False] * 6


def test_a_contact_sheet_holds_the_first_clips_of_every_set(evaluations, tmp_path):
    write_sheet(evaluations, tmp_path / "all.png")
    write_sheet(evaluations[:1], tmp_path / "one.png")
    with Image.open(tmp_path / "all.png") as several, Image.open(tmp_path / "one.png") as one:
        assert several.width * several.height > 1.5 * one.width * one.height
        assert {(230, 26, 26), (8, 8, 8)} <= {pixel for _, pixel in several.convert("RGB").getcolors(1 << 20) or []}


def test_a_chart_has_a_bar_per_set_and_attribute(evaluations):
    figure = plot_accuracy(evaluations[:2])
    (axes,) = figure.axes
    heights = [
        [bar.get_height() for bar in container] for container in axes.containers if hasattr(container, "patches")
    ]
    assert heights[0] == [100.0] * 6
    colour = evaluations[1].accuracy["colour"].share
    assert heights[1] == pytest.approx([100 * colour, 100, 100, 100, 100, 100 * colour])
    assert [label.get_text() for label in axes.get_xticklabels()] == [*VALUES, "all"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["verbose", "terse"]


def test_a_clip_is_described_by_what_it_shows_instead(listener):
    questions = questions_of(["a blue circle going left", "a red circle"])
    result = evaluate(listener(ignored=("colour",)), "x", questions)
    assert describe(result, 0) == "a blue circle going left [colour is red, not blue]"
    assert describe(result, 1) == "a red circle [all right]"


def test_an_accuracy_is_written_in_percent_or_not_at_all():
    assert format_accuracy(Accuracy(95, 100)) == "95.0 (89-98)"
    assert format_accuracy(Accuracy(0, 7)) == "0.0 (0-35)"
    assert format_accuracy(Accuracy(0, 0)) is None
