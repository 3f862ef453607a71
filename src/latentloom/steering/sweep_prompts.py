"""Pairs of prompts for a sweep, from a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentloom.errors import FileError

KEYS = ("base", "injected")


@dataclass(frozen=True)
class PromptPair:
    """A prompt to sample, another one to swap in, and the seed of the noise."""

    base: str
    injected: str
    seed: int


def read_prompt_pairs(path: Path | str) -> list[tuple[str, str]]:
    """The pairs (base, injected) of a file of JSON lines with these two keys; blank lines do not count.

    Raises:
        FileError: no such file, a line that is no pair (named by its number), or no pair at all.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise FileError(f"{path} is not UTF-8 text (byte {error.start}); give JSON lines") from error
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}; give a file of JSON lines with {' and '.join(KEYS)}") from error
    pairs = [_pair(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise FileError(f"{path} holds no pair; write one JSON object with {' and '.join(KEYS)} per line")
    return pairs


def seed_pairs(pairs: Sequence[tuple[str, str]], num_pairs: int | None, seed: int = 0) -> list[PromptPair]:
    """That many pairs with seeds of their own, counted from `seed`; the list is gone through again as often as needed.

    Args:
        pairs: at least one.
        num_pairs: how many; as many as there are where None.
        seed: of the first.
    """
    total = len(pairs) if num_pairs is None else num_pairs
    return [PromptPair(*pairs[number % len(pairs)], seed + number) for number in range(total)]


def _pair(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
        sides = tuple(row[key] for key in KEYS)
    except (ValueError, TypeError, KeyError):
        sides = ()
    if len(sides) != 2 or not all(isinstance(side, str) and side.strip() for side in sides):
        raise FileError(
            f'{path}, line {number}: no pair; write {{"base": "a prompt", "injected": "another"}} on each line'
        )
    base, injected = sides
    return base, injected
