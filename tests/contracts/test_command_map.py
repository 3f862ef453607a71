"""docs/command-map.md answers every command line of the documents and tells the truth about today."""

import re
import shlex
from itertools import dropwhile
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from latentloom.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
MAP = ROOT / "docs" / "command-map.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in MAP.read_text(encoding="utf-8").splitlines()
    if line.endswith((" yes |", " no |", " later |"))
]


def commands(cell: str) -> list[list[str]]:
    """The words of every `latentloom …` in a cell, behind a launcher or not."""
    return [shlex.split(code) for code in re.findall(r"`(?:torchrun [^`]*--no-python )?latentloom ([^`]*)`", cell)]


def test_every_command_line_of_the_documents_has_a_row(shared):
    answered = {" ".join(code.split()) for row in ROWS for code in re.findall(r"`([^`]*)`", row[0])}
    missing = [line for line in documented_lines(shared) if line not in answered]
    assert missing == []


def documented_lines(shared: Path) -> list[str]:
    """The shell lines of the documents, continuations joined, with the name of the prompt file made neutral."""
    lines = []
    for document in sorted((shared / "specs").glob("*.txt")):
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.strip().startswith("#"):
                    lines.append(re.sub(r"datasets/\w+\.jsonl", "datasets/rewrites.jsonl", " ".join(line.split())))
        lines += re.findall(r"Command family: `([^`]+)`", " ".join(text.split()))
    assert len(lines) > 20
    return lines


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_a_row_says_yes_exactly_when_the_command_line_and_its_files_are_here(row):
    promised = [is_understood(words) for words in commands(row[1])]
    promised += [(ROOT / name).exists() for name in re.findall(r"\b(?:recipes|benchmarks)/\w+\.\w+", row[1])]
    if row[2] == "yes":
        assert all(promised)
    if row[2] == "later" and promised:
        assert not all(promised)


@pytest.mark.parametrize(
    ("line", "understood"),
    [
        ("generate PROMPT --out clip.mp4", True),
        ("runs show ID", True),
        ("--verbose …", True),
        ("generate PROMPT --no_such_option 1", False),
        ("runs no_such_verb ID", False),
        ("inspect no_such_kind PATH", False),
        ("no_such_noun", False),
    ],
)
def test_the_check_of_the_rows_tells_a_command_line_of_today(line, understood):
    assert is_understood(line.split()) is understood


def is_understood(words: list[str]) -> bool:
    """Whether the parser takes these words, down to the verb and its options; nothing is run."""
    command, context, words = typer.main.get_command(app), None, [word for word in words if word != "…"]
    try:
        while words and command is not None:
            context = command.make_context(command.name, list(words), parent=context)
            if not isinstance(command, TyperGroup):
                break
            words = list(dropwhile(lambda word: word.startswith("-"), words))  # groups have flags only
            if words:
                _, command, words = command.resolve_command(context, words)
    except typer.TyperException:
        return False
    return True
