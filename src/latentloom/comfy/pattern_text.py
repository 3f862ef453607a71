"""What a pattern of blocks looks like, in words."""

from collections.abc import Sequence
from itertools import pairwise

from latentloom.steering.blocks import PRESETS

#: Preset -> what it is called.
NAMES = {
    "none": "none",
    "all": "all",
    "early_blocks": "early",
    "mid_blocks": "mid",
    "late_blocks": "late",
    "first_half": "first half",
    "second_half": "second half",
    "alternating": "alternating",
    "sparse": "sparse",
}
PARTS = ("early", "mid", "late")


def analyse(strengths: Sequence[float]) -> list[str]:
    """Lines that say which blocks are active, what pattern that is, and how strong they are.

    Args:
        strengths: one per block; 0 is not active.
    """
    num_blocks = len(strengths)
    active = [block for block, strength in enumerate(strengths) if strength]
    if not active:
        return [f"0 of {num_blocks} blocks"]
    shares = ", ".join(f"{name} {_count(active, f'{name}_blocks', num_blocks)}" for name in PARTS)
    return [
        f"{len(active)} of {num_blocks} blocks: {ranges(active)}",
        f"pattern: {detect(strengths)} ({shares})",
        f"strength {_extent(strengths)}",
    ]


def detect(strengths: Sequence[float]) -> str:
    """The pattern's name: which blocks, and `ramp up`, `ramp down` or `peak` where their strengths rise or fall."""
    num_blocks = len(strengths)
    active = [block for block, strength in enumerate(strengths) if strength]
    names = [name for preset, name in NAMES.items() if list(PRESETS[preset](num_blocks)) == active]
    where = names[0] if names else _spacing(active)
    slope = _slope([abs(strengths[block]) for block in active])
    return f"{where}, {slope}" if slope else where


def ranges(blocks: Sequence[int]) -> str:
    """Ascending blocks as text, such as `0-9, 20`."""
    parts: list[list[int]] = []
    for block in blocks:
        if parts and block == parts[-1][1] + 1:
            parts[-1][1] = block
        else:
            parts.append([block, block])
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in parts)


def _spacing(active: Sequence[int]) -> str:
    steps = {after - before for before, after in pairwise(active)}
    if len(active) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        return "alternating" if step == 2 else f"sparse, every {step} blocks"
    return "custom"


def _slope(values: Sequence[float]) -> str:
    pairs = list(pairwise(values))
    if not pairs or len(set(values)) == 1:
        return ""
    rises, falls = ([_is_ascending(pair, sign) for pair in pairs] for sign in (1, -1))
    top = max(range(len(values)), key=lambda place: values[place])
    if all(rises):
        return "ramp up"
    if all(falls):
        return "ramp down"
    return "peak" if all(rises[:top]) and all(falls[top:]) else "uneven"


def _is_ascending(pair: tuple[float, float], sign: int) -> bool:
    return sign * pair[0] <= sign * pair[1]


def _count(active: Sequence[int], preset: str, num_blocks: int) -> str:
    part = PRESETS[preset](num_blocks)
    return f"{sum(block in part for block in active)}/{len(part)}"


def _extent(strengths: Sequence[float]) -> str:
    values = [strength for strength in strengths if strength]
    low, high = min(values), max(values)
    return f"{low:.2f} in each" if low == high else f"{low:.2f} to {high:.2f}, mean {sum(values) / len(values):.2f}"
