"""docs/command-map.md answers every command line of the documents and tells the truth about today."""

import re
from pathlib import Path

import pytest

from latentloom.cli.main import NOUNS, load_noun

MAP = Path(__file__).resolve().parents[2] / "docs" / "command-map.md"
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in MAP.read_text(encoding="utf-8").splitlines()
    if line.endswith((" yes |", " no |", " later |"))
]


def commands(cell: str) -> list[list[str]]:
    """The words of every `latentloom …` in a cell."""
    return [code.split()[1:] for code in re.findall(r"`(latentloom [^`]*)`", cell)]


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
def test_a_command_that_works_today_is_registered_and_a_later_one_is_not(row):
    for words in commands(row[1]):
        nouns = [word for word in words if not word.startswith("-") and word != "…"]
        if row[2] == "yes" and nouns:
            assert nouns[0] in NOUNS
            parts = getattr(load_noun(nouns[0]), "commands", None)
            assert parts is None or nouns[1] in parts
    if row[2] == "later":
        promised = commands(row[1])
        assert not promised or any(words[0] not in NOUNS or "--adapter" in words for words in promised)
