"""`latentloom steer sweep` on a tiny checkpoint: results, page, record, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from latentloom.cli import steer_sweep
from latentloom.cli.main import NOUNS, Noun, run
from latentloom.runs import RunRecord
from latentloom.steering.sweep import report as sweep_report
from latentloom.wan import pipeline as pipeline_module

SMALL = ["--num-frames", "5", "--height", "16", "--width", "16", "--steps", "2", "--points", "2", "--device", "cpu"]
PAIRS = [
    {"base": "a small red circle moves left on black", "injected": "a large blue square on white"},
    {"base": "a green square", "injected": "a small red circle moves down"},
]


@pytest.fixture(autouse=True)
def noun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command by itself, as `sweep`."""
    monkeypatch.setitem(NOUNS, "sweep", Noun("latentloom.cli.steer_sweep", "Map which blocks listen."))


@pytest.fixture
def other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a checkpoint of MicroWan's sizes pass for a model that is not MicroWan."""
    facts_of = pipeline_module.facts_of
    monkeypatch.setattr(
        pipeline_module, "facts_of", lambda root: replace(facts_of(root), key="unknown", title="unknown model")
    )


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Leaves out the page, whose pictures take seconds; how many sections it would have, call by call."""
    num_sections = []

    def write(folder, introduction, sections):
        num_sections.append(len(sections))
        return folder / "report.html"

    monkeypatch.setattr(sweep_report, "write_sweep_report", write)
    return num_sections


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert output.out == ""
    return lines[0]


def test_micro_gets_both_maps_and_an_interrupted_sweep_goes_on(tiny_checkpoint, tmp_path, capsys, monkeypatch, no_page):
    out = tmp_path / "run"
    arguments = ["sweep", "--num-pairs", "3", "--ckpt-root", str(tiny_checkpoint), "--out", str(out), *SMALL]
    assert run([*arguments, "--exact", "--windows", "2", "--json", "-"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert set(measured["attributes"]) == {"none", "0", "1", "0-1", "0-1@0-0.5", "0-1@0.5-1"}
    assert measured["attributes"]["0-1"]["colour"]["injected"]["total"] == 3
    assert measured["contributions"]["units"] == ["0", "1"]
    assert measured["velocity"]["parts"]["none"]["overall"]["mean"] == 0
    assert measured["velocity"]["parts"]["0-1"]["overall"]["mean"] > 0
    assert [len(pair) for pair in measured["pairs"]] == [3, 3, 3]
    assert {path.name for path in out.iterdir()} == {"config.toml", "record.json", "results.json", "sweep.json"}
    assert no_page == [4]  # blocks, windows, velocity, clips
    record = RunRecord.read(out)
    assert (record.status, record.seeds) == ("finished", [0, 1, 2])

    # a second call computes nothing anew but what it lacks
    from latentloom.steering.sweep.velocity import _Run

    monkeypatch.setattr(_Run, "change", None)
    assert run([*arguments, "--sets", "single,presets", "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["attributes"]["0"] == measured["attributes"]["0"]
    assert again["contributions"] == {"method": "", "units": ["0", "1"]}
    assert "0-1@0-0.5" not in again["attributes"]
    assert no_page == [4, 3]


def test_another_model_gets_the_map_of_its_velocity(tiny_checkpoint, tmp_path, pairs_file, capsys, other_model):
    out = tmp_path / "run"
    arguments = [
        "--prompts",
        str(pairs_file),
        "--ckpt-root",
        str(tiny_checkpoint),
        "--group-size",
        "2",
        "--sets",
        "single",
    ]
    assert run(["sweep", *arguments, "--num-pairs", "3", "--out", str(out), *SMALL, "--json", "-"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert "attributes" not in measured
    assert set(measured["velocity"]["parts"]) == {"0-1"}  # the only group
    assert [pair[2] for pair in measured["pairs"]] == [0, 1, 2]
    assert measured["pairs"][2][:2] == measured["pairs"][0][:2]
    assert "How far the velocity moves" in (out / "report.html").read_text()


def test_prompts_of_ones_own_are_read_on_micro(tiny_checkpoint, tmp_path, pairs_file, capsys, no_page):
    arguments = ["--prompts", str(pairs_file), "--ckpt-root", str(tiny_checkpoint), "--sets", "single"]
    assert run(["sweep", *arguments, "--out", str(tmp_path / "run"), *SMALL, "--json", "-"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert set(measured["attributes"]["0"]) == {"colour", "shape"}  # in what both pairs differ
    assert measured["contributions"]["method"] == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sets", "single,prefixes"], "'prefixes' as sets of blocks"),
        (["--sets", ""], "as sets of blocks"),
        (["--group-size", "3"], "groups of 3 blocks in a model of 2"),
        (["--points", "3"], "--points 3 of a schedule of 2 steps"),
        (["--exact", "--permutations", "4"], "--exact was given with --permutations"),
        (["--width", "32"], "MicroWan's world is square"),
        (["--prompts", "missing.jsonl"], "missing.jsonl"),
        (["--num-pairs", "1"], "--num-pairs"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(tiny_checkpoint, tmp_path, capsys, arguments, message):
    given = ["sweep", "--ckpt-root", str(tiny_checkpoint), "--out", str(tmp_path / "run"), *SMALL, *arguments]
    assert run(given) == 2
    assert message in refusal(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "has no prompts of its own; give --prompts FILE"),
        (["--exact", "--prompts", "PAIRS"], "--exact is about attributes read from clips"),
        (["--permutations", "2", "--prompts", "PAIRS"], "--permutations is about attributes"),
        (["--windows", "2", "--prompts", "PAIRS"], "--windows is about attributes"),
        (["--sets", "single,windows", "--prompts", "PAIRS"], "--sets windows is about attributes"),
    ],
)
def test_another_model_is_not_asked_for_attributes(
    tiny_checkpoint, tmp_path, pairs_file, capsys, other_model, arguments, message
):
    arguments = [str(pairs_file) if argument == "PAIRS" else argument for argument in arguments]
    given = ["sweep", "--ckpt-root", str(tiny_checkpoint), "--out", str(tmp_path / "run"), *SMALL, *arguments]
    assert run(given) == 2
    assert message in refusal(capsys)


def test_a_folder_with_another_sweep_is_left_alone(tiny_checkpoint, tmp_path, pairs_file, capsys, no_page):
    arguments = ["sweep", "--ckpt-root", str(tiny_checkpoint), "--prompts", str(pairs_file), "--sets", "single"]
    arguments += ["--out", str(tmp_path / "run"), *SMALL]
    assert run(arguments) == 0
    before = (tmp_path / "run" / "record.json").read_bytes()
    capsys.readouterr()
    assert run([*arguments, "--seed", "7"]) == 2
    assert refusal(capsys).endswith("holds a sweep with other pairs; give another --out, or delete it")
    assert (tmp_path / "run" / "record.json").read_bytes() == before


def test_one_pair_has_no_interval(tiny_checkpoint, tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps(PAIRS[0]))
    given = ["sweep", "--ckpt-root", str(tiny_checkpoint), "--prompts", str(path), "--out", str(tmp_path / "run")]
    assert run([*given, *SMALL]) == 2
    assert "holds one pair" in refusal(capsys)


def test_the_help_names_every_family():
    from latentloom.steering.sweep.parts import FAMILIES

    (option,) = steer_sweep.command.__annotations__["sets"].__metadata__
    assert all(name in option.help for name in FAMILIES)
