"""Pairs of prompts from a file."""

import json
from pathlib import Path

from latentloom.errors import FileError


def read_prompt_pairs(path: Path | str, keys: tuple[str, str]) -> list[tuple[str, str]]:
    """The pairs of a file of JSON lines, each an object with these two keys; blank lines do not count.

    Args:
        path: of the file.
        keys: what the two prompts of a pair are called in it.

    Raises:
        FileError: no such file, a line that is no pair (named by its number), or no pair at all.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text (byte {error.start}); give JSON lines") from error
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}; give a file of JSON lines with {' and '.join(keys)}") from error
    pairs = [_pair(path, keys, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise FileError(f"{path} holds no pair; write one JSON object with {' and '.join(keys)} per line")
    return pairs


def _pair(path: Path, keys: tuple[str, str], number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        first, second = (row[key] for key in keys)
        if first.strip() and second.strip():
            return first, second
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    example = json.dumps(dict(zip(keys, ("a prompt", "another"), strict=True)))
    raise FileError(f"{path}, line {number}: no pair; write {example} on each line")
