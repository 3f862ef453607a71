"""Missing frames on a curve through the given ones whose slope does not jump."""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from latentloom.keyframes.frame_gaps import Gaps


def hermite_frames(
    values: Float[Tensor, "B C T H W"], given: Bool[Tensor, "B T"], gaps: Gaps
) -> Float[Tensor, "M C H W"]:
    """The missing frames by cubic Hermite interpolation: exact where every value moves as a quadratic in time.

    The slope at a given frame is that of the parabola through it and its given neighbours (at the ends, through the
    three given frames there), for any spacing. Two given frames are joined by a straight line.

    Args:
        values: clips in float32 or float64.
        given: true where a frame is given.
        gaps: of this mask.

    Source: de Boor, "A practical guide to splines" (1978), chapter IV, piecewise cubic Bessel interpolation; with equal
    spacing these are Catmull and Rom's splines (1974).
    """
    frames = values.transpose(1, 2)
    left, right = frames[gaps.clip, gaps.left], frames[gaps.clip, gaps.right]
    share, length = _as_image(gaps.share), _as_image((gaps.right - gaps.left).to(values.dtype))
    rise = right - left
    keys = (~given).to(torch.uint8).argsort(dim=1, stable=True)  # given frames first, in order
    slope_left = length * _slope(frames, given, keys, gaps.clip, gaps.left)
    slope_right = length * _slope(frames, given, keys, gaps.clip, gaps.right)
    bend = share * (1 - share)
    # the straight line, and what the slopes at both ends bend it by
    return left + share * rise + bend * ((1 - share) * (slope_left - rise) - share * (slope_right - rise))


def _slope(
    frames: Float[Tensor, "B T C H W"],
    given: Bool[Tensor, "B T"],
    keys: Int64[Tensor, "B T"],
    clip: Int64[Tensor, "M"],
    at: Int64[Tensor, "M"],
) -> Float[Tensor, "M C H W"]:
    """Change per frame at given frames: of the parabola through three, or of the line through two."""
    most = given.sum(dim=1)[clip] - 1
    rank = given.cumsum(dim=1)[clip, at] - 1
    middle = torch.minimum(rank, most - 1).clamp_min(1)
    # two given frames are the first and the second (and again the second); their line has no curvature
    first, second, third = (keys[clip, torch.minimum(place, most)] for place in (middle - 1, middle, middle + 1))
    early, late = _secant(frames, clip, first, second), _secant(frames, clip, second, third)
    curvature = (late - early) / _as_image((third - first).clamp_min(1).to(frames.dtype))
    curved = early + curvature * _as_image((2 * at - first - second).to(frames.dtype))
    return torch.where(_as_image(most > 1), curved, early)


def _secant(
    frames: Float[Tensor, "B T C H W"], clip: Int64[Tensor, "M"], start: Int64[Tensor, "M"], end: Int64[Tensor, "M"]
) -> Float[Tensor, "M C H W"]:
    steps = (end - start).clamp_min(1).to(frames.dtype)
    return (frames[clip, end] - frames[clip, start]) / _as_image(steps)


def _as_image(numbers: Shaped[Tensor, "M"]) -> Shaped[Tensor, "M 1 1 1"]:
    return numbers[:, None, None, None]
