"""`latentloom steer measure`: two prompts in; tables, a page and JSON out; one line for every mistake."""

import json
from pathlib import Path

import pytest

from latentloom.cli.main import run

A, B = "a red circle moves left", "a large blue square moves up on white"
SMALL = ["--num-frames", "5", "--height", "16", "--width", "32", "--steps", "3", "--seeds", "2", "--points", "2"]


@pytest.fixture
def measure(tiny_checkpoint: Path, tmp_path: Path):
    """Runs `latentloom steer measure` on the tiny checkpoint with small clips; later options win."""
    fixed = ["--ckpt-root", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path / "measured"), *SMALL]

    def body(*arguments: object) -> int:
        return run(["steer", "measure", *fixed, *map(str, arguments)])

    return body


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    lines = output.err.strip().splitlines()
    assert len(lines) == 1, lines
    assert output.out == ""
    return lines[0]


def test_two_prompts_become_tables_a_verdict_a_page_and_json(measure, tmp_path, capsys):
    assert measure(A, B, "--json", tmp_path / "told.json") == 0
    shown = capsys.readouterr().out
    for words in ("relative L2", "512 rows (diluted)", "floor", "The text embedder", "lands on padding"):
        assert words in shown
    page = tmp_path / "measured" / "report.html"
    assert page.is_file()
    assert str(page) in shown
    assert (page.parent / "plots" / "attention.png").stat().st_size > 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["prompts"] == [A, B]
    assert told["report"] == str(page)
    assert (told["model"], told["steps"], told["seeds"], told["dtype"]) == ("micro", 3, [0, 1], "float32")
    projected = told["bottleneck"]["projected"]
    rows = max(projected["lengths"][0])
    assert projected["diluted"]["share_changed"][0] == pytest.approx(projected["share_changed"][0] * rows / 512)
    assert len(told["effect"]["timesteps"]) == 2
    assert all(0 < mass < 1 for masses in told["effect"]["padding_mass"]["mean"] for mass in masses)
    assert set(told["seconds"]) == {"load", "embeddings", "answers"}
    assert json.loads((page.parent / "measure.json").read_text())["effect"] == told["effect"]


def test_equal_and_empty_prompts_are_measured_and_json_has_standard_output_to_itself(measure, capsys):
    assert measure("", "", "--json", "-") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bottleneck"]["raw"]["lengths"] == [[1, 1]]  # the end of the text
    assert told["bottleneck"]["raw"]["relative_l2"] == [0.0]
    assert told["bottleneck"]["ratio"] == [None]
    assert told["effect"]["velocity"]["mean"] == [0.0, 0.0]
    assert len(told["verdict"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([A], "Missing argument"),
        ([A, B, "--seeds", "1"], "greater than or equal to 2; given was '1'"),
        ([A, B, "--points", "4"], "--points 4 of a schedule of 3 steps"),
        ([A, B, "--guidance", "much"], "--guidance much is not understood"),
        ([A, B, "--height", "17"], "height=17 is not a multiple"),
        ([A, B, "--ckpt-root", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(measure, capsys, arguments, message):
    assert measure(*arguments) == 2
    assert message in refusal(capsys)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(measure, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert measure(A, B, "--out", tmp_path / "file") == 2
    assert "file" in refusal(capsys)
