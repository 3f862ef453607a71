"""`latentloom micro`: score, read, draw and build from the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.cli.main import run
from latentloom.micro.attributes import VALUES, Attributes
from latentloom.micro.config import NUM_PROCESSES
from latentloom.micro.lexicon import parse
from latentloom.micro.score import PROMPT_SETS
from latentloom.micro.world import draw_clips
from latentloom.storage import write_video

GREEN_CROSS = Attributes("green", "cross", "large", "up", "white")


@pytest.fixture
def score(tiny_checkpoint: Path):
    """Runs `latentloom micro score` on the tiny checkpoint."""
    return lambda *arguments: run(["micro", "score", "--ckpt-root", str(tiny_checkpoint), *map(str, arguments)])


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    frames = draw_clips([GREEN_CROSS], torch.Generator().manual_seed(0))[0].permute(1, 2, 3, 0)
    write_video(tmp_path / "clip.mp4", frames.mul(255).round().byte(), 8)
    return tmp_path / "clip.mp4"


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert output.out == ""
    return lines[0]


def test_score_prints_nothing_but_json_on_standard_output(score, capsys):
    assert score("--num-prompts", 2, "--sets", "terse, unseen pairs", "--json", "-") == 0
    output = capsys.readouterr()
    sets = json.loads(output.out)["sets"]
    assert list(sets)[:2] == ["terse", "unseen pairs"]
    assert list(sets["terse"]["accuracy"]) == [*VALUES, "all"]
    assert {accuracy["total"] for accuracy in sets["terse"]["accuracy"].values()} == {2}
    assert sets["terse"]["num_prompts"] == 2
    low, high = sets["terse"]["accuracy"]["colour"]["interval"]
    assert 0 <= low < sets["terse"]["accuracy"]["colour"]["share"] + 1e-9 <= high + 1e-9 <= 1 + 1e-9
    assert "a guess" in output.err  # the table


def test_score_shows_every_set_as_a_row_and_the_ceiling_of_the_reader(score, capsys):
    assert score("--num-prompts", 1) == 0
    rows = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in [*PROMPT_SETS, "a guess"]:
        assert sum(row.startswith(name) for row in rows) == 1, name
    drawn = next(row for row in rows if row.startswith("drawn "))
    assert drawn.count("100.0 (21-100)") == 6


def test_score_takes_prompts_of_ones_own(score, tmp_path, capsys):
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a ruby disc\n\nsomething huge that sinks\n")
    assert score("--prompts", prompts, "--json", "-", "--out", tmp_path / "page") == 0
    sets = json.loads(capsys.readouterr().out)["sets"]
    assert list(sets) == ["mine.txt"]
    totals = {name: accuracy["total"] for name, accuracy in sets["mine.txt"]["accuracy"].items()}
    assert totals == {"colour": 1, "shape": 1, "size": 1, "motion": 1, "background": 0, "all": 2}
    assert sets["mine.txt"]["accuracy"]["background"]["share"] is None
    html = (tmp_path / "page" / "report.html").read_text("utf-8")
    assert "something huge that sinks" in html
    assert (tmp_path / "page" / "contact_sheet.png").exists()


def test_the_same_seed_gives_the_same_score(score, tmp_path):
    for name in ("first", "again"):
        assert score("--num-prompts", 3, "--sets", "verbose", "--seed", 4, "--json", tmp_path / name) == 0
    first, again = (json.loads((tmp_path / name).read_text())["sets"] for name in ("first", "again"))
    assert first["verbose"]["accuracy"] == again["verbose"]["accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "verbos"], "unknown prompt set 'verbos': choose from verbose, terse, unseen synonyms"),
        (["--sets", "verbose,"], "unknown prompt set ''"),
        (["--num-prompts", "0"], "num-prompts"),
        (["--seed", "-1"], "seed"),
        (["--seed", "99999999999999"], "seed"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--prompts", "cats.txt"], "'a cat' mentions no attribute"),
        (["--prompts", "circles.txt", "--sets", "verbose"], "which choose other prompts"),
        (["--prompts", "circles.txt", "--num-prompts", "5"], "which choose other prompts"),
        (["--out", "cats.txt"], "cats.txt"),
        (["--ckpt-root", "."], "holds no Wan model"),
        (["--ckpt-root", "nowhere"], "nowhere does not exist; give a checkpoint's folder or file"),
    ],
)
def test_a_mistake_in_scoring_is_one_line_and_leaves_nothing_behind(
    score, tmp_path, monkeypatch, capsys, arguments: list[str], message: str
):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "cats.txt").write_text("a red circle\na cat\n")
    (tmp_path / "circles.txt").write_text("a red circle\n")
    monkeypatch.chdir(tmp_path)
    assert score(*arguments) == 2
    assert message in refusal(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cats.txt", "circles.txt", "empty.txt"]


def test_score_refuses_a_model_whose_clips_its_reader_cannot_read(
    score, tiny_checkpoint, tmp_path, capsys, monkeypatch
):
    from latentloom.wan import facts, pipeline

    monkeypatch.setattr(pipeline, "facts_of", lambda root: facts.get("ti2v-5b"))
    assert score("--num-prompts", 1) == 2
    assert "1280x704" in refusal(capsys)


def test_read_tells_what_a_clip_shows(clip, capsys):
    assert run(["micro", "read", str(clip), "--json", "-"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["attributes"] == GREEN_CROSS.mentioned()
    assert measured["radius"] == pytest.approx(10.75, abs=1.3)
    assert measured["way"][0] == pytest.approx(0, abs=1)
    assert -16 < measured["way"][1] < -11  # upwards
    assert measured["misfit"] < 0.15


def test_read_prints_a_line_per_attribute_and_a_dash_for_what_is_not_there(clip, tmp_path, capsys):
    assert run(["micro", "read", str(clip)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["colour", "green"],
        ["shape", "cross"],
        ["size", "large"],
        ["motion", "up"],
        ["background", "white"],
    ]
    write_video(tmp_path / "blank.png", np.full((3, 16, 16, 3), 255, np.uint8), 8)
    assert run(["micro", "read", str(tmp_path / "blank.png")]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["-", "-", "-", "-", "white"]


@pytest.mark.parametrize("side", [1, 2, 3, 130])
def test_read_takes_a_square_clip_of_any_size(tmp_path, side: int):
    noise = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    write_video(tmp_path / "clip.png", noise, 8)
    assert run(["micro", "read", str(tmp_path / "clip.png")]) == 0


def test_read_refuses_what_is_no_square_video_in_one_line(tmp_path, capsys):
    write_video(tmp_path / "wide.mp4", np.zeros((9, 48, 64, 3), np.uint8), 8)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    messages = {"wide.mp4": "64x48", "text.mp4": "text.mp4", "empty.mp4": "empty.mp4", "missing.mp4": "missing.mp4"}
    for name, message in messages.items():
        assert run(["micro", "read", str(tmp_path / name), "--json", "-"]) == 2
        assert message in refusal(capsys)
    assert run(["micro", "read", str(tmp_path)]) == 2
    assert str(tmp_path) in refusal(capsys)


def test_drawn_clips_read_as_their_captions_say(tmp_path, capsys):
    out = tmp_path / "media"
    assert run(["micro", "draw", "--num", "3", "--out", str(out), "--split", "held_out", "--lexicon", "unseen"]) == 0
    assert str(out) in capsys.readouterr().out
    clips = sorted(out.glob("*.mp4"))
    assert [clip.name for clip in clips] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    for clip in clips:
        assert run(["micro", "read", str(clip), "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)["attributes"]
        assert found == parse(clip.with_suffix(".txt").read_text("utf-8")).mentioned()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "unknown split 'test'"),
        (["--lexicon", "latin"], "unknown lexicon 'latin'"),
        (["--size", "50"], "50 pixels"),
        (["--num-frames", "8"], "8 frames"),
        (["--num", "0"], "--num"),
    ],
)
def test_a_mistake_in_drawing_is_one_line_and_leaves_no_folder(tmp_path, capsys, arguments: list[str], message: str):
    assert run(["micro", "draw", "--out", str(tmp_path / "clips"), *arguments]) == 2
    assert message in refusal(capsys)
    assert list(tmp_path.iterdir()) == []


def test_draw_does_not_mix_its_clips_with_other_files(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(["micro", "draw", "--out", str(tmp_path)]) == 2
    assert "is not empty" in refusal(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_build_passes_its_recipe_on_and_reports_where_the_weights_are(tmp_path, monkeypatch, capsys):
    from latentloom.micro import build

    calls = []

    def launch(run_stage, num_processes: int, *arguments) -> None:
        calls.append((run_stage.__name__, num_processes))
        raise RuntimeError("enough")

    monkeypatch.setattr(build, "launch_processes", launch)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("seed = 3\n[vae]\ncrop_steps = 7\n")
    folders = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "weights")]
    with pytest.raises(RuntimeError, match="enough"):
        run(["micro", "build", "--config", str(recipe), "text.steps=5", *folders])
    assert calls == [("train_vae", NUM_PROCESSES)]
    written = (tmp_path / "work" / "config.toml").read_text()
    assert "seed = 3" in written
    assert "crop_steps = 7" in written
    assert "steps = 5" in written
    assert run(["micro", "build", *folders]) == 2
    assert "other settings" in refusal(capsys)
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vae.crop_stepz=3"], "crop_steps"),
        (["vae.crop_steps=many"], "crop_steps"),
        (["--config", "missing.toml"], "missing.toml"),
        (["--out", "weights", "--work", "weights/build"], "replaced as a whole"),
    ],
)
def test_a_mistake_in_a_build_is_one_line_before_anything_starts(
    tmp_path, monkeypatch, capsys, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    assert run(["micro", "build", *arguments]) == 2
    assert message in refusal(capsys)
    assert list(tmp_path.iterdir()) == []
