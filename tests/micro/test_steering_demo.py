"""The demo's chapter on steering, on MicroWan itself."""

from latentloom.micro import default_checkpoint, steering_demo
from latentloom.micro.evaluate import evaluate
from latentloom.micro.score import prompt_set
from latentloom.runs import Report
from latentloom.wan.pipeline import WanPipeline


def test_the_chapter_sets_colours_and_shows_them(tmp_path, monkeypatch):
    monkeypatch.setattr(steering_demo, "NUM_QUESTIONS", 2)
    monkeypatch.setattr(steering_demo, "SHOWN", ("purple",))
    pipeline = WanPipeline.load(default_checkpoint(), device="cpu")
    plain = evaluate(pipeline, "verbose", prompt_set("verbose", 2, 3), 3)
    chapter = steering_demo.run_steering_chapter(pipeline, plain, 3)
    assert [found.colour for found in chapter.set_to["purple"].read] == ["purple", "purple"]
    report = Report("demo")
    steering_demo.add_steering_chapter(report, chapter, 8.0)
    report.write(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 4
    assert "set to purple" in page
