"""Pairs of prompts for a sweep, each with a seed."""

from collections.abc import Sequence
from dataclasses import dataclass

KEYS = ("base", "injected")


@dataclass(frozen=True)
class PromptPair:
    """A prompt to sample, another one to swap in, and the seed of the noise."""

    base: str
    injected: str
    seed: int


def seed_pairs(pairs: Sequence[tuple[str, str]], num_pairs: int | None, seed: int = 0) -> list[PromptPair]:
    """That many pairs with seeds of their own, counted from `seed`; the list is gone through again as often as needed.

    Args:
        pairs: at least one.
        num_pairs: how many; as many as there are where None.
        seed: of the first.
    """
    total = len(pairs) if num_pairs is None else num_pairs
    return [PromptPair(*pairs[number % len(pairs)], seed + number) for number in range(total)]
