"""A clip as one picture: a row per method, a column per frame, given frames marked."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from latentloom.drifting.pictures import SAMPLE_PIXELS, image_grid
from latentloom.errors import ShapeError

MAX_COLUMNS = 17
MARK_PIXELS = 3
MARK_COLOUR = (0.85, 0.45, 0.1)  # red, green and blue from 0 to 1: orange
PAPER_COLOUR = (1.0, 1.0, 1.0)


def contact_sheet(
    clips: Sequence[Float[Tensor, "_ T H W"]], captions: Sequence[str], given: Bool[Tensor, "T"]
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture of one clip as several methods have it; given frames have an orange edge and their number a word.

    Args:
        clips: pixels from -1 to 1, one or three channels; a row each. Latents are decoded first.
        captions: one per row.
        given: true where a frame was given. Of more than 17 frames, 17 evenly spaced ones are shown.

    Raises:
        ShapeError: clips of different shapes, or a mask or captions that do not fit them.
    """
    shapes = {tuple(clip.shape[1:]) for clip in clips}
    if len(shapes) != 1 or {clip.shape[1] for clip in clips} != {len(given)}:
        raise ShapeError(
            f"clips {[tuple(clip.shape) for clip in clips]} for {len(given)} frames in one picture; give clips alike"
        )
    shown = torch.linspace(0, len(given) - 1, min(len(given), MAX_COLUMNS)).round().long()
    marks = given.cpu()[shown]
    rows = [_with_edges(clip.detach().cpu().float()[:, shown].transpose(0, 1), marks) for clip in clips]
    numbers = [f"{number} given" if mark else str(number) for number, mark in zip(shown.tolist(), marks, strict=True)]
    return image_grid(rows, captions, numbers)


def _with_edges(frames: Float[Tensor, "T _ H W"], marks: Bool[Tensor, "T"]) -> Float[Tensor, "T 3 height width"]:
    """Frames enlarged by a whole factor, each within an edge of its colour."""
    scale = -(-SAMPLE_PIXELS // min(frames.shape[2:]))
    large = frames.expand(-1, 3, -1, -1).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    edge = torch.tensor([MARK_COLOUR if mark else PAPER_COLOUR for mark in marks.tolist()]) * 2 - 1
    height, width = large.shape[2:]
    framed = edge[:, :, None, None].repeat(1, 1, height + 2 * MARK_PIXELS, width + 2 * MARK_PIXELS)
    framed[:, :, MARK_PIXELS:-MARK_PIXELS, MARK_PIXELS:-MARK_PIXELS] = large
    return framed
