"""Missing frames of a clip filled in from its given ones."""

from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes.flow import flow_between
from latentloom.keyframes.frame_gaps import Gaps, check_frames, fill_gaps, find_gaps
from latentloom.keyframes.frame_hermite import hermite_frames
from latentloom.keyframes.frame_warp import warped_frames
from latentloom.keyframes.sinkhorn import SinkhornWarper

FrameMode = Literal["linear", "smooth", "flow", "sinkhorn", "learned"]


def interpolate_frames(
    values: Float[Tensor, "B C T H W"],
    given: Bool[Tensor, "B T"],
    mode: FrameMode,
    warper: SinkhornWarper | None = None,
) -> Float[Tensor, "B C T H W"]:
    """Fill in each clip's missing frames; before its first and after its last given frame that one is held.

    Everything is computed in float32, in float64 for float64 clips.

    Args:
        values: B clips of C channels, T frames, H rows and W columns. Given frames come back bit for bit, what stands
            at missing places is never read.
        given: true where a frame is given; each clip has its own.
        mode: "linear" blends the two given frames around a missing one; "smooth" puts a curve without kinks through
            all given ones; "flow" warps both along their optical flow, "sinkhorn" along the motion of matched tokens,
            "learned" along that of a fitted warper.
        warper: for "learned" alone.

    Raises:
        ConfigError: "learned" without a warper, or a warper for another mode.
        ShapeError: the shapes do not fit together, or a clip has no given frame.
    """
    check_frames(values, given)
    if (warper is not None) != (mode == "learned"):
        raise ConfigError(
            f"mode {mode!r} {'without' if warper is None else 'with'} a warper; give one for 'learned' alone"
        )
    if mode in ("sinkhorn", "learned"):
        return (warper or SinkhornWarper())(values, given)
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    gaps = find_gaps(given, exact.dtype)
    match mode:
        case "linear":
            frames = _linear_frames(exact, gaps)
        case "smooth":
            frames = hermite_frames(exact, given, gaps)
        case "flow":
            with torch.autocast(values.device.type, enabled=False):
                frames = warped_frames(exact, gaps, flow_between)
        case _:
            assert_never(mode)
    return fill_gaps(values, gaps, frames)


def adjacent_targets(
    values: Float[Tensor, "B C T H W"],
    masks: Bool[Tensor, "L B T"],
    level: Int64[Tensor, "B"],
    mode: FrameMode,
    warper: SinkhornWarper | None = None,
) -> Float[Tensor, "B C T H W"]:
    """What a clip at its level is to become one level up: its reconstruction there, the clean clip from level 0.

    Args:
        values: clean clips.
        masks: true where a frame is given, densest level first, as `nested_frame_masks` gives them.
        level: of each clip, from 0 to L - 1.
        mode: of the interpolation.
        warper: for "learned" alone.

    Raises:
        ShapeError: the shapes do not fit together, a clip has no given frame, or a level is not one of the masks'.
    """
    if masks.ndim != 3 or level.shape != masks.shape[1:2]:
        raise ShapeError(
            f"masks {tuple(masks.shape)} and levels {tuple(level.shape)} do not fit; give [L, B, T] and [B]"
        )
    if level.numel() and not 0 <= int(level.min()) <= int(level.max()) < len(masks):
        raise ShapeError(f"levels {level.tolist()} of masks {tuple(masks.shape)}; give 0 to {len(masks) - 1}")
    denser = masks[(level - 1).clamp_min(0), torch.arange(len(level), device=level.device)]
    return interpolate_frames(values, denser | (level == 0).unsqueeze(1), mode, warper)


def _linear_frames(values: Float[Tensor, "B C T H W"], gaps: Gaps) -> Float[Tensor, "M C H W"]:
    frames = values.transpose(1, 2)
    left, right = frames[gaps.clip, gaps.left], frames[gaps.clip, gaps.right]
    return torch.lerp(left, right, gaps.share[:, None, None, None])
