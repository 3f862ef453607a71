"""A list of key rules, read from left to right or from right to left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

# What a placeholder of a rule may stand for. {leaf} is the parameter's own name, {n} a block's number.
PLACEHOLDERS: Mapping[str, str] = {
    "leaf": "weight|bias|gamma",
    "n": "[0-9]{1,5}",
    "qk": "[qk]",
    "qkv": "[qkv]",
    "qkvo": "[qkvo]",
    "side": "encoder|decoder",
}

Rule = tuple[str, str]


@dataclass(frozen=True)
class KeyMap:
    """Renames tensors between the official layout and the layout of diffusers and transformers, both ways.

    A rule is a pair of whole-key templates, (official, ours), with the same placeholders on both sides; so each rule
    can be read in either direction and nothing but a full match is renamed.
    """

    rules: tuple[Rule, ...]

    def from_official(self, key: str) -> str | None:
        """The key in the layout of diffusers or transformers; None when no rule knows the official key."""
        return _rename(key, self._official_side)

    def to_official(self, key: str) -> str | None:
        """The key in the official layout; None when no rule knows the key."""
        return _rename(key, self._our_side)

    @cached_property
    def _official_side(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(official), ours) for official, ours in self.rules]

    @cached_property
    def _our_side(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(ours), official) for official, ours in self.rules]


def prefixed(official: str, ours: str, rules: Iterable[Rule]) -> list[Rule]:
    """The same rules below a pair of module paths."""
    return [(f"{official}.{left}", f"{ours}.{right}") for left, right in rules]


def _rename(key: str, side: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, template in side:
        if match := pattern.fullmatch(key):
            return template.format(**match.groupdict())
    return None


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", template)
    source = "".join(
        f"(?P<{part}>{PLACEHOLDERS[part]})" if index % 2 else re.escape(part) for index, part in enumerate(parts)
    )
    return re.compile(source)
