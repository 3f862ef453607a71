"""Prompts and their rewrites, from files that people write by hand or other programs export."""

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentloom.errors import FileError
from latentloom.storage import write_text
from latentloom.storage.header import existing_file
from latentloom.wan.prompt_cleaning import clean

BASE_KEYS = ("base", "base_prompt", "source", "src", "prompt", "original", "original_prompt", "input", "terse")
REWRITTEN_KEYS = ("rewritten", "rewritten_prompt", "rewrite", "target", "tgt", "output", "verbose")
SEPARATORS = ("\t", " -> ", " → ")
_ACCEPTED = f"a row has one key of {', '.join(BASE_KEYS)} and one of {', '.join(REWRITTEN_KEYS)}"

NumberedRow = tuple[int, str, str]


@dataclass(frozen=True)
class PromptPair:
    """A prompt and how it should have been written."""

    base: str
    rewritten: str


@dataclass(frozen=True)
class PairFile:
    """The pairs of a file, and the numbers (from 1) of the lines that were left out."""

    pairs: list[PromptPair]
    duplicates: list[int]
    unchanged: list[int]


def read_pairs(path: Path | str) -> PairFile:
    """The pairs of a JSONL file, cleaned as Wan cleans prompts; repeats and rewrites like their base are left out.

    Args:
        path: one JSON object per line, `{"base": ..., "rewritten": ...}` or with other names of `BASE_KEYS` and
            `REWRITTEN_KEYS`; blank lines do not count, further keys are not read.

    Raises:
        FileError: no such file, a row that is no pair (named by its line), or no pair that is left.
    """
    rows = ((number, *_sides(path, number, line)) for number, line in _lines(path))
    return _collect(path, rows)


def read_pair_text(path: Path | str) -> PairFile:
    """The pairs of a text file, one per line: the prompt, a tab or ` -> ` or ` → `, the rewrite; else as `read_pairs`.

    Raises:
        FileError: no such file, a line that is no pair (named by its number), or no pair that is left.
    """
    rows = ((number, *_split(path, number, line)) for number, line in _lines(path))
    return _collect(path, rows)


def tidy_pairs(rows: Iterable[tuple[str, str]], origin: str) -> PairFile:
    """Pairs from elsewhere, treated as those of a file; rows are numbered from 1.

    Raises:
        FileError: a side is empty, or no pair is left.
    """
    return _collect(origin, ((number, *row) for number, row in enumerate(rows, start=1)))


def write_pairs(path: Path | str, pairs: Sequence[PromptPair]) -> None:
    """Write the JSONL file that `read_pairs` reads."""
    rows = ({"base": pair.base, "rewritten": pair.rewritten} for pair in pairs)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def normalise(prompt: str) -> str:
    """What a prompt says, whatever its case, spacing and punctuation; prompts that agree in this are one prompt.

    A prompt of punctuation alone keeps it, so that two of them are not taken for one.
    """
    # folding can undo the normal form, and the normal form of some letters can be folded
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", prompt).casefold()).casefold()
    words = "".join(" " if unicodedata.category(letter)[0] == "P" else letter for letter in folded).split()
    return " ".join(words or folded.split())


def _collect(origin: Path | str, rows: Iterable[NumberedRow]) -> PairFile:
    """Clean, check and sort out the rows; `origin` is named in what is refused."""
    found = PairFile([], [], [])
    seen: set[tuple[str, str]] = set()
    for number, *sides in rows:
        base, rewritten = (clean(side) for side in sides)
        for name, text in (("base", base), ("rewritten", rewritten)):
            if not text:
                raise FileError(f"{origin} line {number}: its {name} prompt is empty; write one or drop the line")
        key = normalise(base), normalise(rewritten)
        if key[0] == key[1]:
            found.unchanged.append(number)
        elif key in seen:
            found.duplicates.append(number)
        else:
            seen.add(key)
            found.pairs.append(PromptPair(base, rewritten))
    if not found.pairs:
        what = "only rewrites that say what their base says" if found.unchanged else "nothing"
        raise FileError(f"{origin} holds {what}; give at least one pair of a prompt and its rewrite")
    return found


def _lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    content = existing_file(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    # at line feeds alone: a JSON text may hold the other characters that end a line
    for number, raw in enumerate(content.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FileError(f"{path} line {number} is not UTF-8 text; save the file in that encoding") from error
        if line.strip():
            yield number, line.strip("\r\n ")


def _sides(path: Path | str, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} line {number} is not JSON ({line[:40]!r}); {_ACCEPTED}") from error
    if not isinstance(row, dict):
        raise FileError(f"{path} line {number} is a {type(row).__name__} and not an object; {_ACCEPTED}")
    return _side(path, number, row, BASE_KEYS), _side(path, number, row, REWRITTEN_KEYS)


def _side(path: Path | str, number: int, row: dict[str, Any], keys: tuple[str, ...]) -> str:
    # the plain name decides alone: beside it, a key such as "source" is something else, where the row came from
    present = [keys[0]] if keys[0] in row else [key for key in keys if key in row]
    if not present:
        given = ", ".join(map(repr, row))[:120] or "no key"
        raise FileError(f"{path} line {number} has {given} but no {keys[0]} prompt; {_ACCEPTED}")
    if len(present) > 1:
        both = " and ".join(map(repr, present))
        raise FileError(f"{path} line {number} has {both}; name the one that is the {keys[0]} prompt {keys[0]!r}")
    text = row[present[0]]
    if not isinstance(text, str):
        raise FileError(f"{path} line {number}: {present[0]!r} is {text!r:.40} and not text; {_ACCEPTED}")
    return text


def _split(path: Path | str, number: int, line: str) -> tuple[str, str]:
    # a tab is meant as nothing else; an arrow beside it belongs to a prompt
    separators = SEPARATORS[:1] if "\t" in line else SEPARATORS[1:]
    parts = re.split("|".join(map(re.escape, separators)), f" {line} ")
    if len(parts) != 2:
        found = "no separator" if len(parts) < 2 else f"{len(parts) - 1} separators"
        raise FileError(
            f"{path} line {number} has {found} ({line[:40]!r}); write a prompt, a tab or ' -> ' or ' → ', its rewrite"
        )
    return parts[0], parts[1]
