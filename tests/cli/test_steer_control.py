"""`latentloom steer control`: pairs in, vectors out; listed, applied, and refused in one line."""

import json
from pathlib import Path

import pytest

from latentloom.cli.main import run

PROMPT = "A small blue square moves up on a white background."


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of the two sizes, fitted without measuring them."""
    folder = tmp_path_factory.mktemp("controls")
    arguments = ["--attribute", "size", "--num-pairs", "8", "--num-prompts", "0", "--out", str(folder), "--gguf"]
    assert run(["steer", "control", "fit", *arguments]) == 0
    return folder


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line that a command line is refused with."""
    assert run(["steer", "control", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_a_vector_per_value_is_written_and_listed_in_both_formats(vectors, capsys):
    assert run(["steer", "control", "list", str(vectors), "--json", "-"]) == 0
    listed = json.loads(capsys.readouterr().out)["controls"]
    names = [Path(item["file"]).name for item in listed]
    assert names == ["size_large.gguf", "size_large.safetensors", "size_small.gguf", "size_small.safetensors"]
    assert {(item["site"], item["blocks"], item["method"], item["pairs"]) for item in listed} == {
        ("context", 6, "mean", 8)
    }


def test_pairs_of_a_file_make_one_vector_of_its_name(tmp_path, capsys):
    pairs = tmp_path / "bright.jsonl"
    pairs.write_text('{"positive": "a red circle", "negative": "a blue circle"}\n' * 3, encoding="utf-8")
    arguments = ["--pairs", str(pairs), "--site", "attention_output", "--windows", "0,0.5,1", "--out", str(tmp_path)]
    assert run(["steer", "control", "fit", *arguments, "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(tmp_path / "bright.safetensors")]
    (first_half, second_half) = told["separation"]["bright"]
    assert len(first_half) == len(second_half) == 6
    assert first_half[0] == second_half[0] == 1.0


def test_a_vector_is_applied_after_the_span_was_taken_out(vectors, tmp_path, capsys):
    large, small = vectors / "size_large.safetensors", vectors / "size_small.safetensors"
    arguments = ["--add", str(large), "--ablate", str(large), "--ablate", str(small), "--steps", "4"]
    assert run(["steer", "control", "apply", PROMPT, *arguments, "--out", str(tmp_path), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [operation["method"] for operation in told["operations"]] == ["ablate", "add"]
    assert told["operations"][1]["strengths"] == [4.0] * 6
    assert told["velocity_change"] > 0.01
    assert told["equals_swapped"] is None
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--attribute", "mood"], "attribute 'mood' is unknown; use colour"),
        (["fit", "--windows", "0.5"], "--windows 0.5 is not understood"),
        (["fit", "--windows", "0,1,0.5"], "bounds that ascend"),
        (["fit", "--method", "learned", "--site", "hidden_states"], "--method learned is for the context"),
        (["fit", "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
        (["apply", PROMPT], "nothing to apply"),
        (["apply", PROMPT, "--add", "nowhere.safetensors"], "nowhere.safetensors"),
        (["apply", PROMPT, "--add", "x.safetensors", "--blocks", "7"], "6 blocks, 0 to 5"),
        (["list", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, arguments)
