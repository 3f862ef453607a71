"""Frames between two others, moved there along a motion."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.keyframes.frame_gaps import Gaps

DOUBT = 0.1  # the better of 0.1 and 0.3 on three videos and on drawn shapes
LEAST_DOUBT = 1e-3

Warp = Callable[
    [Float[Tensor, "P C H W"], Float[Tensor, "P C H W"], Int64[Tensor, "K"], Float[Tensor, "K"]],
    Float[Tensor, "K C H W"],
]


def warped_frames(values: Float[Tensor, "B C T H W"], gaps: Gaps, warp: Warp) -> Float[Tensor, "M C H W"]:
    """The missing frames, each made from the two given ones around it; a copy where only one side has any.

    Args:
        values: clips in float32 or float64.
        gaps: their missing frames.
        warp: makes K frames from P pairs of a frame before and one after, each one's pair, and its share of the way.
    """
    source = values.transpose(1, 2)
    frames = source[gaps.clip, gaps.left]
    between = (gaps.left != gaps.right).nonzero().flatten()
    if not len(between):
        return frames
    ends = torch.stack([gaps.clip, gaps.left, gaps.right], dim=1)[between]
    pairs, pair = ends.unique(dim=0, return_inverse=True)
    clip, left, right = pairs.unbind(dim=1)
    warped = warp(source[clip, left], source[clip, right], pair, gaps.share[between])
    return frames.index_copy(0, between, warped)


def blend_along(
    first: Float[Tensor, "K C H W"],
    second: Float[Tensor, "K C H W"],
    share: Float[Tensor, "K"],
    motion: Float[Tensor, "K 2 H W"],
    doubt: float | Float[Tensor, ""] = DOUBT,
) -> Float[Tensor, "K C H W"]:
    """The frames between: both neighbours followed along the motion and blended, unmoved where they disagree moved.

    Args:
        first: frames before.
        second: frames after.
        share: of the way from first to second, 0 to 1.
        motion: columns and rows that what is seen at a place of the frame between moves from first to second.
        doubt: the squared difference of the moved neighbours, over that of the unmoved ones around there, at which the
            motion counts for a half.
    """
    share = share[:, None, None, None]
    early, late = displaced(first, -share * motion), displaced(second, (1 - share) * motion)
    moved, unmoved = _difference(early, late), _difference(first, second)
    # where neither differs both are right; the mean keeps noise in flat places from deciding there
    unmoved = unmoved * doubt + unmoved.mean(dim=(1, 2, 3), keepdim=True) * LEAST_DOUBT
    trust = unmoved / (unmoved + moved).clamp_min(torch.finfo(first.dtype).tiny)
    return torch.lerp(torch.lerp(first, second, share), torch.lerp(early, late, share), trust)


def displaced(images: Float[Tensor, "K C H W"], offset: Float[Tensor, "K 2 H W"]) -> Float[Tensor, "K C H W"]:
    """What the images show so many columns and rows away from each place; beyond a border its values go on.

    Args:
        images: K images.
        offset: columns and rows, not rounded; values between pixels are bilinear.
    """
    height, width = images.shape[-2:]
    row = torch.arange(height, device=images.device, dtype=images.dtype).unsqueeze(1)
    column = torch.arange(width, device=images.device, dtype=images.dtype)
    # the numbers of rows and columns from -1 to 1; an image of one row or column has nowhere to go
    across = (offset[:, 0] + column) * (2 / max(width - 1, 1)) - 1
    down = (offset[:, 1] + row) * (2 / max(height - 1, 1)) - 1
    grid = torch.stack([across, down], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def blurred(images: Float[Tensor, "K C H W"], deviation: float) -> Float[Tensor, "K C H W"]:
    """The images under a Gaussian window; beyond a border its values go on.

    Args:
        images: K images.
        deviation: of the window, in pixels.
    """
    radius = max(round(2 * deviation), 1)
    offset = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.softmax(-0.5 * (offset / deviation).square(), dim=0)
    channels = images.shape[1]
    padded = F.pad(images, (radius, radius, radius, radius), mode="replicate")
    across = F.conv2d(padded, weights.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(across, weights.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)


def _difference(first: Float[Tensor, "K C H W"], second: Float[Tensor, "K C H W"]) -> Float[Tensor, "K 1 H W"]:
    return blurred((first - second).square().mean(dim=1, keepdim=True), 1.5)
