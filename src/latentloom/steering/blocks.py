"""Which blocks of a transformer are meant, and how strongly, from a preset's name or a pattern."""

import re
from collections.abc import Callable, Sequence

from latentloom.errors import ConfigError

PRESETS: dict[str, Callable[[int], range]] = {
    "all": lambda n: range(n),
    "none": lambda n: range(0),
    "first_half": lambda n: range((n + 1) // 2),
    "second_half": lambda n: range((n + 1) // 2, n),
    "early_blocks": lambda n: range(_quarter(n)),
    "mid_blocks": lambda n: range(_quarter(n), n - _quarter(n)),
    "late_blocks": lambda n: range(n - _quarter(n), n),
    "alternating": lambda n: range(0, n, 2),
    "sparse": lambda n: range(0, n, 4),
}
"""Name -> the blocks it means in a transformer of n blocks. Early, mid and late are a quarter, a half and a quarter."""

RAMP = re.compile(r"\s*(-?[\d.]+(?:e-?\d+)?)\s*\.\.\s*(-?[\d.]+(?:e-?\d+)?)\s*")


def block_strengths(pattern: str, num_blocks: int, strength: float | str = 1.0) -> tuple[float, ...]:
    """One strength per block of the model, 0 for those that the pattern leaves out.

    Args:
        pattern: see `parse_blocks`.
        num_blocks: of the model, counted from it.
        strength: a number for all chosen blocks; `0.2..1` for a straight ramp from the first to the last of them; or
            numbers parted by commas, one per chosen block.

    Raises:
        ConfigError: a pattern or a strength that is not understood.
    """
    chosen = parse_blocks(pattern, num_blocks)
    values = dict(zip(chosen, _values(strength, len(chosen)), strict=True))
    return tuple(values.get(block, 0.0) for block in range(num_blocks))


def parse_blocks(pattern: str, num_blocks: int) -> tuple[int, ...]:
    """The blocks that a pattern means, ascending.

    Args:
        pattern: a name of `PRESETS`; a list such as `0-9,20,30-39`; or one `0` or `1` for each block of the model.
        num_blocks: of the model.

    Raises:
        ConfigError: neither of these, or a block that the model does not have.
    """
    text = pattern.strip()
    if text in PRESETS:
        return tuple(PRESETS[text](num_blocks))
    if num_blocks > 1 and re.fullmatch(f"[01]{{{num_blocks}}}", text):
        return tuple(block for block, mark in enumerate(text) if mark == "1")
    chosen: set[int] = set()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if ends is None:
            raise ConfigError(
                f"blocks {pattern!r} are not understood; give {', '.join(PRESETS)}, a list such as 0-2,5, "
                f"or {num_blocks} digits 0 and 1"
            )
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first or last >= num_blocks:
            raise ConfigError(f"blocks {part.strip()!r}: this model has {num_blocks} blocks, 0 to {num_blocks - 1}")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def picture(strengths: Sequence[float]) -> str:
    """One character per block: full where it is edited, light where it is left alone."""
    return "".join("█" if strength else "░" for strength in strengths)


def _quarter(num_blocks: int) -> int:
    return (num_blocks + 2) // 4  # the nearest whole number


def _values(strength: float | str, count: int) -> list[float]:
    if not isinstance(strength, str):
        return [float(strength)] * count
    ramp = RAMP.fullmatch(strength)
    try:
        if ramp is not None:
            first, last = float(ramp[1]), float(ramp[2])
            return [first + (last - first) * place / max(1, count - 1) for place in range(count)]
        values = [float(part) for part in strength.split(",")]
    except ValueError:
        raise ConfigError(
            f"strength {strength!r} is not understood; give a number, a ramp such as 0.2..1, or one number per block"
        ) from None
    if len(values) == 1:
        return values * count
    if len(values) != count:
        raise ConfigError(f"{len(values)} strengths for {count} blocks; give one for all, or one each")
    return values
