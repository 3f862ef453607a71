"""`latentloom embed`: what is a verb, what is a prompt, and what is neither."""

import json
from pathlib import Path

import pytest
import torch

from latentloom.cli.main import run
from latentloom.storage import load_object
from latentloom.storage.modules import read_origin
from latentloom.tensors import TextEmbeddings

PROMPT = "A small red circle moves to the left."


def prompts_of(path: Path) -> list[str]:
    """The prompts that a file of embeddings says it was made from."""
    record = read_origin(path).record
    assert record is not None
    return record["prompts"]


@pytest.fixture
def stored(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands of a test write, without naming a model."""
    monkeypatch.setattr("latentloom.micro.default_checkpoint", lambda: tiny_checkpoint)
    return tmp_path / "stored.safetensors"


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("latentloom: ")
    assert captured.err.count("\n") == 1
    return captured.err.removeprefix("latentloom: ").rstrip("\n")


@pytest.mark.parametrize(
    "words",
    [
        ["embed", PROMPT, "blue", "--device", "cpu", "--out"],
        ["embed", "encode", PROMPT, "blue", "--device", "cpu", "--out"],
        ["embed", "--device", "cpu", PROMPT, "blue", "--out"],
    ],
    ids=["prompts", "verb", "options_first"],
)
def test_prompts_are_encoded_with_and_without_the_verb(words: list[str], stored: Path):
    assert run([*words, str(stored)]) == 0
    assert prompts_of(stored) == [PROMPT, "blue"]
    assert len(load_object(stored, TextEmbeddings)) == 2


def test_prompts_come_from_a_file_alone(stored: Path, tmp_path: Path):
    texts = tmp_path / "prompts.txt"
    texts.write_text("diff\na.safetensors\n")
    assert run(["embed", "--prompts", str(texts), "--out", str(stored)]) == 0
    assert prompts_of(stored) == ["diff", "a.safetensors"]


@pytest.mark.parametrize("word", ["add", "diff", "dif", "a.safetensors"])
def test_any_word_is_a_prompt_after_encode(word: str, stored: Path):
    assert run(["embed", "encode", word, "red", "--out", str(stored)]) == 0
    assert prompts_of(stored) == [word, "red"]


@pytest.mark.parametrize("prompts", [["dif"], ["red", "add"], ["adding red"], ["difference", "red"], ["red", "blue"]])
def test_prompts_that_are_no_verbs_stay_prompts(prompts: list[str], stored: Path):
    assert run(["embed", *prompts, "--out", str(stored)]) == 0
    assert prompts_of(stored) == prompts


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dif", "a.safetensors", "b.safetensors"], "'dif' is not a verb; did you mean diff?"),
        (["encod", PROMPT], "'encod' is not a verb; did you mean encode?"),
        (["subtract", "a.safetensors", "b.safetensors"], "'subtract' is not a verb, and files need one"),
        (["a.safetensors", "b.safetensors"], "use encode, diff, add, interpolate, amplify"),
        (["--out", "x.safetensors", "diff", "a.safetensors"], "the verb diff comes after an option; give it first"),
        (["dif", "--normalize", "a.safetensors"], "--normalize"),
        ([], "no prompt was given"),
        (["--no-such-option", "red"], "--no-such-option"),
        (["encode", "red", "--ckpt-root", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistyped_verb_is_refused_before_anything_is_encoded(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert run(["embed", *words]) == 2
    assert message in refusal(capsys)
    assert list(tmp_path.iterdir()) == []


def test_help_lists_the_verbs(capsys: pytest.CaptureFixture[str]):
    assert run(["embed", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in ("encode", "diff", "add", "interpolate", "amplify"))


def test_encode_reports_what_it_wrote(stored: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["embed", PROMPT, "--out", str(stored), "--dtype", "bfloat16", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["prompts"], report["dim"], report["dtype"]) == ([PROMPT], 16, "bfloat16")
    assert load_object(stored, TextEmbeddings).dtype == torch.bfloat16
