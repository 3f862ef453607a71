"""Which frames of a clip are keyframes at each corruption level: nested, from many to few, endpoints kept."""

from itertools import pairwise
from typing import Literal, assert_never

import torch
from jaxtyping import Bool
from torch import Tensor

from latentloom.errors import ConfigError

FrameSchedule = Literal["uniform", "random"]


def frame_levels(num_frames: int, num_levels: int, min_given: int = 2) -> tuple[tuple[int, ...], ...]:
    """The given frames of each level, densest level first; each level but the last halves the gaps of the next.

    17 frames in 4 levels have a keyframe every 2, 4, 8 and 16 frames. A gap of odd length is cut beside its middle; a
    gap of one frame stays. The densest level still misses a frame.

    Args:
        num_frames: frames of a clip, T.
        num_levels: number of levels, L.
        min_given: given frames of the last level, evenly spaced. From 2 on they include the first and the last frame;
            1 gives the first frame alone, and the level before it both ends.

    Raises:
        ConfigError: no frame would be given or none missing, or the gaps cannot be halved so often.
    """
    if not 1 <= min_given < num_frames:
        raise ConfigError(f"{min_given} given frames of {num_frames}; give at least 1 and fewer than all")
    if num_levels < 1:
        raise ConfigError(f"{num_levels} levels; give at least 1")
    last = num_frames - 1
    levels = [(0,) if min_given == 1 else tuple(round(i * last / (min_given - 1)) for i in range(min_given))]
    while len(levels) < num_levels:
        denser = _halved(levels[-1], last)
        if len(denser) == num_frames:
            raise ConfigError(
                f"{num_levels} levels do not fit between {num_frames} frames and {min_given} given; "
                f"give at most {len(levels)} levels"
            )
        levels.append(denser)
    return tuple(reversed(levels))


def nested_frame_masks(
    num_frames: int,
    num_levels: int,
    batch: int,
    generator: torch.Generator,
    *,
    min_given: int = 2,
    schedule: FrameSchedule,
) -> Bool[Tensor, "{num_levels} {batch} {num_frames}"]:
    """Which frames of each clip are given at each level; a level is a strict subset of the one before.

    Args:
        num_frames: frames of a clip, T.
        num_levels: levels, L; the first has the most given frames.
        batch: clips, B.
        generator: decides the draw of "random"; the masks are made on its device.
        min_given: given frames of the last level.
        schedule: "uniform" has the frames of `frame_levels` for every clip; "random" as many per level, the first and
            the last frame where that level has both, and inner frames that are drawn for each clip on its own.

    Returns:
        True where a frame is given.

    Raises:
        ConfigError: as `frame_levels`.
    """
    levels = frame_levels(num_frames, num_levels, min_given)
    device = generator.device
    match schedule:
        case "uniform":
            masks = torch.zeros(num_levels, batch, num_frames, dtype=torch.bool, device=device)
            for level, frames in enumerate(levels):
                masks[level, :, list(frames)] = True
            return masks
        case "random":
            urgency = torch.rand(batch, num_frames, generator=generator, device=device)
            urgency[:, -1], urgency[:, 0] = -1, -2  # the ends come before all drawn frames
            rank = urgency.argsort(dim=1).argsort(dim=1)
            return rank < torch.tensor([len(frames) for frames in levels], device=device)[:, None, None]
        case _:
            assert_never(schedule)


def _halved(frames: tuple[int, ...], last: int) -> tuple[int, ...]:
    if frames == (0,):
        return (0, last)
    middles = {(left + right) // 2 for left, right in pairwise(frames)}
    return tuple(sorted(middles.union(frames)))
