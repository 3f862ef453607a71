"""The main job, with another model in MicroWan's place."""

from latentloom.micro import demo
from latentloom.micro.score import PROMPT_SETS


def test_the_demo_scores_every_set_and_writes_its_page(listener, tmp_path, monkeypatch):
    model, loaded = listener(), []
    monkeypatch.setattr(demo.WanPipeline, "load", lambda root: loaded.append(root) or model)
    results = demo.run_demo(tmp_path / "demo", 3, seed=9)
    assert loaded == [demo.default_checkpoint()]
    assert [result.name for result in results] == list(PROMPT_SETS)
    assert all(result.accuracy["all"].right == 3 for result in results)
    assert [seeds for _, seeds in model.calls] == [[9, 10, 11]] * len(PROMPT_SETS)  # the same noise for every set
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["contact_sheet.png", "report.html"]
    html = (tmp_path / "demo" / "report.html").read_text("utf-8")
    assert html.count("<video") == 3 * len(PROMPT_SETS)
    assert "does the model listen" in html


def test_the_demo_runs_a_whole_model(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "default_checkpoint", lambda: tiny_checkpoint)
    results = demo.run_demo(tmp_path, 1)
    assert [len(result.clips) for result in results] == [1] * len(PROMPT_SETS)
    assert (tmp_path / "contact_sheet.png").stat().st_size > 0
