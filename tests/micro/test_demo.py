"""The main job, with another model in MicroWan's place."""

import pytest

from latentloom.delta.baselines import identity_adapter
from latentloom.delta.split import Split
from latentloom.delta.train import Candidate, Training
from latentloom.delta.validation import Score
from latentloom.micro import delta_demo, demo
from latentloom.micro.recovery import FOREIGN, KNOWN
from latentloom.micro.score import PROMPT_SETS
from latentloom.micro.steering_demo import SteeringChapter

ALL_SETS = [*PROMPT_SETS, *(f"{name}, with delta" for name in (KNOWN, *FOREIGN))]


@pytest.fixture
def short_training(monkeypatch):
    """Few pairs and one epoch: what is under test is the demo, not how well it learns."""
    monkeypatch.setattr(delta_demo, "NUM_PAIRS", 40)
    quick = {"rank": 4, "cap": 1.0, "epochs": 1}
    monkeypatch.setattr(delta_demo, "SETTINGS", delta_demo.SETTINGS.model_copy(update=quick))


def trained_to_nothing(pipeline) -> Training:
    score = Score(0.5, 0.5, 0.0)
    return Training([Candidate("no adapter", identity_adapter(4), score)], score, Split([], [], []))


@pytest.fixture(autouse=True)
def no_steering(monkeypatch):
    """The chapter on steering needs a real model and has tests of its own."""
    monkeypatch.setattr(demo, "run_steering_chapter", lambda pipeline, plain, seed: SteeringChapter(plain, {}, 0.0))


def test_the_demo_scores_every_set_and_writes_its_page(listener, tmp_path, monkeypatch):
    model, loaded = listener(), []
    monkeypatch.setattr(demo.WanPipeline, "load", lambda root: loaded.append(root) or model)
    monkeypatch.setattr(delta_demo, "train_adapter", trained_to_nothing)
    results = demo.run_demo(tmp_path / "demo", 3, seed=9)
    assert loaded == [demo.default_checkpoint()]
    assert [result.name for result in results] == ALL_SETS
    assert all(result.accuracy["all"].right == 3 for result in results)
    assert [seeds for _, seeds in model.calls] == [[9, 10, 11]] * len(ALL_SETS)  # the same noise for every set
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["contact_sheet.png", "report.html"]
    html = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert html.count("<video") == 3 * len(PROMPT_SETS) + 3 * 2 * len(FOREIGN) + 3
    assert "does the model listen" in html


@pytest.mark.usefixtures("short_training")
def test_the_demo_runs_a_whole_model(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "default_checkpoint", lambda: tiny_checkpoint)
    results = demo.run_demo(tmp_path, 1)
    assert [len(result.clips) for result in results] == [1] * len(ALL_SETS)
    assert (tmp_path / "contact_sheet.png").stat().st_size > 0
