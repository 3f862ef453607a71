"""Strength curves over the blocks of a model, by the names that saved workflows know."""

import json
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from latentloom.comfy.patterns import MOST_BLOCKS, BlockStrengths
from latentloom.errors import ConfigError
from latentloom.steering.blocks import PRESETS

Point = tuple[float, float]
BACKGROUND = 0.1
"""Share of the strength that blocks outside a focus keep."""


@dataclass(frozen=True)
class CurveSettings:
    """What a curve is made from; each shape reads some of it.

    Args:
        base: the largest strength, 0 to 1.
        peak_block: the block in the middle of a bell, counted from 0.
        spread: standard deviation of a bell, in blocks.
        step_size: blocks per step.
        custom: strength per block, by number; 0 where there is none.
        points: of a drawn curve, (x, y) with x ascending, all from 0 to 1.
        seed: of random strengths.
    """

    base: float = 0.5
    peak_block: int = 20
    spread: float = 5.0
    step_size: int = 5
    custom: Mapping[int, float] | None = None
    points: Sequence[Point] = ()
    seed: int = 0


def build_curve(shape: str, num_blocks: int, settings: CurveSettings) -> BlockStrengths:
    """One strength per block, 0 to 1.

    Args:
        shape: a name of `SHAPES`.
        num_blocks: of the model, 1 or more.
        settings: see there.

    Raises:
        ConfigError: an unknown shape, a peak beyond the model, or a drawn curve without points.
    """
    if shape not in SHAPES:
        raise ConfigError(f"pattern {shape!r} is unknown; use {', '.join(SHAPES)}")
    if not 1 <= num_blocks <= MOST_BLOCKS:
        raise ConfigError(f"num_blocks is {num_blocks}; give 1 to {MOST_BLOCKS}")
    if shape in BELLS and not 0 <= settings.peak_block < num_blocks:
        raise ConfigError(
            f"peak_block is {settings.peak_block} and the model has {num_blocks} blocks; give 0 to {num_blocks - 1}"
        )
    if shape == "curve" and not settings.points:
        raise ConfigError("pattern curve has no curve to follow; draw one, or choose another pattern")
    return tuple(min(1.0, max(0.0, strength)) for strength in SHAPES[shape](num_blocks, settings))


def read_points(text: str) -> tuple[Point, ...]:
    """The points of a drawn curve, from JSON such as `[[0, 0.2], [1, 0.8]]`; none from an empty text.

    Raises:
        ConfigError: anything else, or a number outside 0 to 1.
    """
    if not text.strip():
        return ()
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        given = None
    rows = given if isinstance(given, list) else []
    if not rows or not all(isinstance(row, list) and len(row) == 2 and all(map(_is_share, row)) for row in rows):
        shown = text.strip().replace("\n", " ")[:60]
        raise ConfigError(f"curve {shown!r} is not understood; give points from 0 to 1, such as [[0, 0.2], [1, 0.8]]")
    return tuple(sorted(((float(x), float(y)) for x, y in rows), key=lambda point: point[0]))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _uniform(n: int, of: CurveSettings) -> list[float]:
    return [of.base] * n


def _linear_rise(n: int, of: CurveSettings) -> list[float]:
    return [of.base * place for place in _places(n)]


def _linear_decay(n: int, of: CurveSettings) -> list[float]:
    return [of.base * (1 - place) for place in _places(n)]


def _gaussian_peak(n: int, of: CurveSettings) -> list[float]:
    return [of.base * math.exp(-((block - of.peak_block) ** 2) / (2 * of.spread**2)) for block in range(n)]


def _inverse_gaussian(n: int, of: CurveSettings) -> list[float]:
    return [of.base - strength for strength in _gaussian_peak(n, of)]


def _sine_wave(n: int, of: CurveSettings) -> list[float]:
    return [of.base * (1 + math.sin(2 * math.pi * place)) / 2 for place in _places(n)]


def _stepped(n: int, of: CurveSettings) -> list[float]:
    return [of.base if block // of.step_size % 2 == 0 else 0.0 for block in range(n)]


def _random(n: int, of: CurveSettings) -> list[float]:
    return (of.base * torch.rand(n, generator=torch.Generator().manual_seed(of.seed))).tolist()


def _focus(preset: str) -> Callable[[int, CurveSettings], list[float]]:
    def shape(n: int, of: CurveSettings) -> list[float]:
        chosen = PRESETS[preset](n)
        return [of.base * (1.0 if block in chosen else BACKGROUND) for block in range(n)]

    return shape


def _custom(n: int, of: CurveSettings) -> list[float]:
    return [(of.custom or {}).get(block, 0.0) for block in range(n)]


def _drawn(n: int, of: CurveSettings) -> list[float]:
    """Straight between the points, and level before the first and after the last."""
    xs, ys = zip(*of.points, strict=True)

    def at(x: float) -> float:
        after = bisect_right(xs, x)
        if after in (0, len(xs)):
            return ys[min(after, len(xs) - 1)]
        (x0, y0), (x1, y1) = of.points[after - 1], of.points[after]
        return y0 + (y1 - y0) * (x - x0) / (x1 - x0)

    return [at(place) for place in _places(n)]


def _places(n: int) -> list[float]:
    """Where the blocks lie between the first, 0, and the last, 1."""
    return [block / max(1, n - 1) for block in range(n)]


SHAPES: dict[str, Callable[[int, CurveSettings], list[float]]] = {
    "custom": _custom,
    "uniform": _uniform,
    "linear_decay": _linear_decay,
    "linear_rise": _linear_rise,
    "gaussian_peak": _gaussian_peak,
    "inverse_gaussian": _inverse_gaussian,
    "sine_wave": _sine_wave,
    "stepped": _stepped,
    "random": _random,
    "focus_early": _focus("early_blocks"),
    "focus_mid": _focus("mid_blocks"),
    "focus_late": _focus("late_blocks"),
    "curve": _drawn,
}
"""Name -> the strengths of n blocks. In the order that saved workflows know, new ones last."""
BELLS = ("gaussian_peak", "inverse_gaussian")
