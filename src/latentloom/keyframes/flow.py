"""Motion between two frames by coarse-to-fine Lucas-Kanade, seen from a frame between them."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.keyframes.frame_warp import blend_along, blurred, displaced

SMALLEST_SIDE = 4  # of the coarsest image: motions of half a frame are a pixel or two there
STEPS = 6  # Gauss-Newton steps on each scale
REACH = 1.5  # standard deviation in pixels of the window that a place's motion is taken from
DAMPING = 0.03  # of the mean squared slope: where little can be seen, the coarser motion stays
FARTHEST = 1.0  # pixels that one scale may add; coarse images can be matched wrongly, and finer ones not mend it


def flow_between(
    first: Float[Tensor, "P C H W"],
    second: Float[Tensor, "P C H W"],
    pair: Int64[Tensor, "K"],
    share: Float[Tensor, "K"],
) -> Float[Tensor, "K C H W"]:
    """Frames between two others, warped along the optical flow and blended.

    Args:
        first: frames before, in float32 or float64.
        second: frames after.
        pair: which of the P pairs each frame lies between.
        share: of the way from first to second.
    """
    before, after = first[pair], second[pair]
    return blend_along(before, after, share, optical_flow(before, after, share))


@torch.no_grad()
def optical_flow(
    first: Float[Tensor, "K C H W"], second: Float[Tensor, "K C H W"], share: Float[Tensor, "K"]
) -> Float[Tensor, "K 2 H W"]:
    """The motion v for which first(x - share v) is second(x + (1 - share) v), for each place x of the frame between.

    Solved by Gauss-Newton steps on a pyramid of halved images, all channels together. No gradient flows.

    Args:
        first: frames before, in float32 or float64.
        second: frames after.
        share: of the way from first to second, 0 to 1.

    Returns:
        Columns and rows, in pixels.

    Source: Lucas and Kanade, "An iterative image registration technique" (IJCAI 1981); Bouguet, "Pyramidal
    implementation of the Lucas Kanade feature tracker" (2000), here with both frames moving towards the one between.
    """
    motion = first.new_zeros(len(first), 2, 1, 1)
    pairs = _pyramid(first, second)
    finest = _mean_slope(first, second)
    for scale, (early, late) in enumerate(reversed(pairs)):
        size = early.shape[-2:]
        if scale:
            growth = motion.new_tensor([size[1] / motion.shape[3], size[0] / motion.shape[2]])
            motion = F.interpolate(motion, size, mode="bilinear") * growth[:, None, None]
        else:
            motion = motion.expand(-1, -1, *size)
        # what a coarse image has lost is not to be matched, so its slopes are measured against the finest ones too
        slope = torch.maximum(_mean_slope(early, late), finest)
        coarser = motion
        for _ in range(STEPS):
            motion = motion + _step(early, late, share[:, None, None, None], motion, slope)
            motion = blurred(coarser + (motion - coarser).clamp(-FARTHEST, FARTHEST), 0.7)
    return motion


def _pyramid(first: Tensor, second: Tensor) -> list[tuple[Tensor, Tensor]]:
    pairs = [(first, second)]
    while min(pairs[-1][0].shape[-2:]) >= 2 * SMALLEST_SIDE:
        height, width = pairs[-1][0].shape[-2:]
        size = (-(-height // 2), -(-width // 2))
        early, late = (F.interpolate(blurred(image, 1.0), size, mode="area") for image in pairs[-1])
        pairs.append((early, late))
    return pairs


def _step(
    first: Float[Tensor, "K C H W"],
    second: Float[Tensor, "K C H W"],
    share: Float[Tensor, "K 1 1 1"],
    motion: Float[Tensor, "K 2 H W"],
    slope: Float[Tensor, "K 1 1 1"],
) -> Float[Tensor, "K 2 H W"]:
    """What one Gauss-Newton step adds to the motion."""
    early, late = displaced(first, -share * motion), displaced(second, (1 - share) * motion)
    difference = late - early
    # derivative of the difference by the motion: the slopes of both images by how far each of them moves
    across, down = _slopes(share * early + (1 - share) * late)
    products = (across * across, across * down, down * down, across * difference, down * difference)
    sums = blurred(torch.stack([product.mean(dim=1) for product in products], dim=1), REACH) / slope
    xx, xy, yy, x_difference, y_difference = sums.unbind(dim=1)
    xx, yy = xx + DAMPING, yy + DAMPING
    determinant = xx * yy - xy * xy
    step = torch.stack([xy * y_difference - yy * x_difference, xy * x_difference - xx * y_difference], dim=1)
    return (step / determinant.unsqueeze(1)).clamp(-FARTHEST, FARTHEST)


def _mean_slope(first: Float[Tensor, "K C H W"], second: Float[Tensor, "K C H W"]) -> Float[Tensor, "K 1 1 1"]:
    slopes = torch.stack([*_slopes(first), *_slopes(second)])
    squares = slopes.square().mean(dim=(2, 3, 4)).sum(dim=0)
    return squares.clamp_min(torch.finfo(first.dtype).tiny * 1e8)[:, None, None, None]


def _slopes(images: Float[Tensor, "K C H W"]) -> tuple[Float[Tensor, "K C H W"], Float[Tensor, "K C H W"]]:
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return across, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
