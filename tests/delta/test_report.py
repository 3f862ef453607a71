"""An evaluation as metrics.json, pictures and a page."""

import json
import re

import pytest
import torch
from PIL import Image

from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.evaluate import evaluate_adjustments
from latentloom.delta.evaluation_plots import plot_drift, plot_evaluation
from latentloom.delta.pairs import PromptPair
from latentloom.delta.report import verdict, write_evaluation, write_evaluation_report
from latentloom.errors import ConfigError
from latentloom.tensors import TextEmbeddings


def towards(goal: torch.Tensor, share: float):
    """An adjustment that moves every token a share of the way to one vector."""
    return lambda prompts: TextEmbeddings(prompts.tokens.lerp(goal.expand_as(prompts.tokens), share), prompts.lengths)


def make_evaluation(lengths: list[int], texts: bool = True, shares: tuple[float, ...] = (0.5, 0.05)):
    generator = torch.Generator().manual_seed(0)
    goal = torch.ones(6)
    sides = [
        TextEmbeddings(torch.randn(sum(counts), 6, generator=generator) + offset, torch.tensor(counts))
        for counts, offset in ((lengths, 0.2), ([9] * len(lengths), goal))
    ]
    pairs = [PromptPair(f"<base> {row}", f"rewrite {row} " + 60 * "long ") for row in range(len(lengths))]
    adjustments = {"no adapter": lambda prompts: prompts, **{f"step {share}": towards(goal, share) for share in shares}}
    gates = {f"step {share}": lambda prompts: 1 / (1 + prompts.lengths) for share in shares[:1]}
    base, rewritten = sides
    test = PairEmbeddings(base, rewritten, pairs if texts else None, None)
    return evaluate_adjustments(adjustments, test, base.tokens.mean(0), goal, gates, num_resamples=200)


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation([2, 3, 6, 7, 10, 3, 4, 5, 2, 8, 6, 20])


@pytest.fixture(scope="module")
def folder(evaluation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eval") / "new"
    page = write_evaluation(evaluation, folder, introduction="What was trained.", facts={"cache": "pairs.npz"})
    assert page == folder / "report.html"
    return folder


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]


def test_an_evaluation_is_written_as_numbers_pictures_and_a_page(evaluation, folder):
    names = ["before_after", "cosines", "drift", "gain_by_length", "gates", "retrieval"]
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "plots", "report.html"]
    assert sorted(path.stem for path in (folder / "plots").iterdir()) == names
    for path in (folder / "plots").iterdir():
        with Image.open(path) as image:
            assert image.format == "PNG"
            assert image.width > 600
    found = json.loads((folder / "metrics.json").read_text())
    assert found == {"cache": "pairs.npz", **json.loads(json.dumps(evaluation.to_json()))}


def test_a_page_needs_no_network_and_shows_text_literally(folder):
    html = (folder / "report.html").read_text("utf-8")
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", html)
    assert [source[:60] for source in sources if not source.startswith(("data:", "#"))] == []
    assert html.count("<img") == 6
    assert "What was trained." in html
    assert "&lt;base&gt; 0" in html
    assert "<base>" not in html
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html)


def test_tables_show_figures_with_their_intervals(evaluation, folder):
    rows = cells((folder / "report.html").read_text("utf-8"))
    means = evaluation.outcomes["step 0.5"].estimates
    row = next(row for row in rows if row[:1] == ["step 0.5"])
    cosine, gain = means["cosine"], means["gain"]
    assert row[1] == f"{cosine.mean:.3f} ({cosine.low:.3f} to {cosine.high:.3f})"
    assert row[5] == f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    first = next(row for row in rows if row[:1] == ["no adapter"])
    assert first[5:] == ["\u2013", "\u2013"]
    assert [row[:3] for row in rows if row[:2] == ["1-4", "5"]] == [
        ["1-4", "5", name] for name in ("no adapter", "step 0.5", "step 0.05")
    ]


def test_the_pairs_that_gain_most_and_least_are_shown_in_order(evaluation, tmp_path):
    html = write_evaluation_report(evaluation, tmp_path, focus="step 0.5").read_text("utf-8")
    rows = [row for row in cells(html) if len(row) == 5 and row[3].startswith("&lt;base&gt;")]
    gains = [float(row[0]) for row in rows]
    assert len(rows) == 12
    assert gains[:6] == sorted(gains[:6], reverse=True)
    assert gains[6:] == sorted(gains[6:])
    assert gains[0] == pytest.approx(float(evaluation.gain("step 0.5").max()), abs=5e-4)
    assert gains[6] == pytest.approx(float(evaluation.gain("step 0.5").min()), abs=5e-4)
    assert all(len(row[4]) <= 220 and row[4].endswith("…") for row in rows)  # no prompt fills the page


def test_without_texts_no_pairs_are_shown(tmp_path):
    html = write_evaluation_report(make_evaluation([2, 5, 9], texts=False), tmp_path).read_text("utf-8")
    assert "Pairs that gain" not in html
    assert "Side effects" in html


def test_the_verdict_names_the_best_and_what_is_sure(evaluation):
    means = [outcome.estimates["cosine"].mean for outcome in evaluation.outcomes.values()]
    text = verdict(evaluation, "step 0.05")
    assert "12 held-out pairs. Nearest to the rewrites: step 0.5, " in text
    assert f"mean cosine {means[1]:.3f} (no adapter: {means[0]:.3f})" in text
    assert "On cosine step 0.05 is below the best of the others, step 0.5: -0." in text
    assert "On cosine step 0.5 is above the best of the others, step 0.05: +0." in verdict(evaluation, "step 0.5")
    still = verdict(make_evaluation([3, 4], shares=(0.0,)), "step 0.0")
    assert "step 0.0 is not surely different from the best of the others, no adapter: +0.000" in still


def test_a_caller_adds_sections_of_its_own(evaluation, tmp_path):
    page = write_evaluation_report(evaluation, tmp_path, more=lambda report: report.heading("Clips"))
    assert page.read_text("utf-8").count("Clips") == 2  # in the contents and at the end


def test_an_unknown_focus_is_refused_before_anything_is_written(evaluation, tmp_path):
    with pytest.raises(ConfigError, match=r"'step 7' was not evaluated; name one of no adapter, step 0\.5, step 0\.05"):
        write_evaluation(evaluation, tmp_path / "x", focus="step 7")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("lengths", "shares"), [([3], (0.5,)), ([0, 4], (0.1, 0.2)), ([3, 4], ())])
def test_few_pairs_and_few_adjustments_make_a_page_too(lengths, shares, tmp_path):
    html = write_evaluation_report(make_evaluation(lengths, shares=shares), tmp_path).read_text("utf-8")
    assert html.count("<img") == (6 if shares else 2)
    assert "nan" not in re.sub(r"base64,[^\"]*", "", html)


def test_adjustments_keep_their_order_in_pictures(evaluation):
    figures = plot_evaluation(evaluation)
    labels = [label.get_text() for label in figures["retrieval"].axes[0].get_yticklabels()]
    assert labels == ["no adapter", "step 0.5", "step 0.05"]
    assert [axes.get_title().split(":")[0] for axes in figures["before_after"].axes] == ["step 0.5", "step 0.05"]


def test_drifts_of_different_magnitude_stand_on_a_logarithmic_axis():
    near = plot_drift(make_evaluation([3, 4], shares=(0.5, 0.4)))
    far = plot_drift(make_evaluation([3, 4], shares=(0.9, 0.001)))
    assert [figure.axes[0].get_xscale() for figure in (near, far)] == ["linear", "log"]
