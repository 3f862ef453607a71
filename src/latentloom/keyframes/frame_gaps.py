"""Where a clip's missing frames lie between its given ones."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.errors import ShapeError


class Gaps(NamedTuple):
    """All missing frames of a batch in one list, each with the given frames around it.

    Before the first and after the last given frame both are that frame.

    Args:
        clip: row of the batch, for each of M missing frames.
        frame: number of the missing frame.
        left: number of the nearest given frame before it.
        right: number of the nearest given frame after it.
        share: how far it is on the way from left to right, above 0 and below 1; 0 where they are the same.
    """

    clip: Int64[Tensor, "M"]
    frame: Int64[Tensor, "M"]
    left: Int64[Tensor, "M"]
    right: Int64[Tensor, "M"]
    share: Float[Tensor, "M"]


def find_gaps(given: Bool[Tensor, "B T"], dtype: torch.dtype) -> Gaps:
    """The missing frames of a batch of clips, each of which has a given frame.

    Args:
        given: true where a frame is given.
        dtype: of the shares.
    """
    left, right = nearest_given(given)
    clip, frame = (~given).nonzero(as_tuple=True)
    left, right = left[clip, frame], right[clip, frame]
    share = torch.where(left == right, 0, frame - left).to(dtype) / (right - left).clamp_min(1)
    return Gaps(clip, frame, left, right, share)


def nearest_given(given: Bool[Tensor, "B T"]) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """For each frame the nearest given frames before and after it, a given one being its own; beyond the ends the last.

    Args:
        given: true where a frame is given, at least once in each clip.
    """
    num_frames = given.shape[1]
    number = torch.arange(num_frames, device=given.device)
    before = torch.where(given, number, -1).cummax(dim=1).values
    after = torch.where(given, number, num_frames).flip(1).cummin(dim=1).values.flip(1)
    return torch.where(before < 0, after, before), torch.where(after == num_frames, before, after)


def fill_gaps(
    values: Float[Tensor, "B C T H W"], gaps: Gaps, frames: Float[Tensor, "M C H W"]
) -> Float[Tensor, "B C T H W"]:
    """The clips with these frames at the missing places; given frames stay bit for bit.

    Args:
        values: the clips; what stands at missing places does not matter.
        gaps: of the clips' masks.
        frames: of each missing place; they are rounded to the clips' dtype.
    """
    filled = values.clone().transpose(1, 2)
    filled[gaps.clip, gaps.frame] = frames.to(values.dtype)
    return filled.transpose(1, 2)


def check_frames(values: Float[Tensor, "..."], given: Bool[Tensor, "..."]) -> None:
    """Make sure that clips and mask fit together and that each clip has a frame to fill from.

    Raises:
        ShapeError: they do not, or a clip has no given frame.
    """
    if values.ndim != 5 or given.shape != (values.shape[0], values.shape[2]):
        raise ShapeError(
            f"clips {tuple(values.shape)} and a mask of frames {tuple(given.shape)} do not fit; "
            "give [B, C, T, H, W], channels before frames, and [B, T]"
        )
    check_given(given)


def check_given(given: Bool[Tensor, "..."]) -> None:
    """Make sure that a mask of frames is [B, T] and that each clip has a given frame.

    Raises:
        ShapeError: it is not, or a clip has none.
    """
    if given.ndim != 2:
        raise ShapeError(f"a mask of frames of shape {tuple(given.shape)}; give [B, T]")
    empty = (~given.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ShapeError(
            f"clip {empty[0]} of a mask of frames {tuple(given.shape)} has no given frame; give at least one"
        )
