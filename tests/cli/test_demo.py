"""`latentloom demo`: the main job from the command line."""

import json

import pytest

from latentloom.cli.main import run
from latentloom.micro import delta_demo, demo
from latentloom.micro.score import PROMPT_SETS


def test_the_demo_writes_its_report_and_says_where(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "default_checkpoint", lambda: tiny_checkpoint)
    monkeypatch.setattr(delta_demo, "NUM_PAIRS", 40)
    quick = {"rank": 4, "cap": 1.0, "epochs": 1}
    monkeypatch.setattr(delta_demo, "SETTINGS", delta_demo.SETTINGS.model_copy(update=quick))
    assert run(["demo", "--num-prompts", "1", "--out", str(tmp_path / "page"), "--json", "-"]) == 0
    output = capsys.readouterr()
    measured = json.loads(output.out)
    assert list(measured["sets"])[: len(PROMPT_SETS)] == list(PROMPT_SETS)
    assert "unseen synonyms, with delta" in measured["sets"]
    assert measured["seconds"]["demo"] > 0
    assert str(tmp_path / "page" / "report.html") in output.err
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["contact_sheet.png", "report.html"]


@pytest.mark.parametrize("arguments", [["--num-prompts", "0"], ["--seed", "-1"], ["--out", "file"], ["--json", "."]])
def test_a_mistake_is_one_line_before_anything_is_generated(tmp_path, monkeypatch, capsys, arguments: list[str]):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    assert run(["demo", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
