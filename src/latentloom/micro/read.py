"""Reads the attributes of a clip back from its pixels, analytically: no learned part, so it cannot flatter a model."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentloom.micro.attributes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, Attributes
from latentloom.micro.world import RADII, TRAVEL, shape_cover

#: Least RGB distance between object and background for a clip to show an object at all.
_LEAST_CONTRAST = 0.25
_SIZE_LIMIT = (RADII["small"][1] + RADII["large"][0]) / 2
_STILL_LIMIT = TRAVEL[0] / 2
_RADII = torch.arange(4.0, 14.01, 0.5)


@dataclass(frozen=True)
class Reading:
    """Attributes of one clip, and what they were decided from.

    radius: pixels of a 48-pixel frame; way: (x, y) from the first to the last frame, likewise;
    misfit: mean absolute difference between the object and its best template, 0 for a perfect shape.
    """

    attributes: Attributes
    radius: float
    way: tuple[float, float]
    misfit: float


def read_clips(clips: Float[Tensor, "B 3 T H W"]) -> list[Reading]:
    """The reading of each clip; attributes are None where no object stands out from the background.

    Args:
        clips: RGB in [0, 1], square frames of any size.

    Method: background from the border's median; colour from the median of the pixels far from it; motion from the
    way of the centroid; shape and size by comparing the mean of the centred frames with drawn templates.
    """
    return [_read_clip(clip.float().clamp(0, 1)) for clip in clips]


def _read_clip(clip: Float[Tensor, "3 T H W"]) -> Reading:
    scale = clip.shape[-1] / 48
    border = torch.cat([clip[..., 0, :], clip[..., -1, :], clip[..., 0], clip[..., -1]], dim=-1)
    ground = border.flatten(1).median(dim=1).values
    background = _nearest(ground, BACKGROUNDS)
    contrast = (clip - ground[:, None, None, None]).norm(dim=0)
    strongest = contrast.flatten().kthvalue(max(1, int(contrast.numel() * 0.995))).values
    if strongest < _LEAST_CONTRAST:
        return Reading(Attributes(background=background), 0.0, (0.0, 0.0), 1.0)
    object_colour = clip[:, contrast > 0.7 * strongest].median(dim=1).values
    direction = object_colour - ground
    cover = torch.einsum("cthw,c->thw", clip - ground[:, None, None, None], direction) / direction.square().sum()
    cover = torch.where(cover > 0.2, cover, 0).clamp(0, 1)
    centre = _centroids(cover)
    way = (centre[-1] - centre[0]) / scale
    shape, radius, misfit = _match_shape(cover, centre, scale)
    attributes = Attributes(
        colour=_nearest(object_colour, COLOURS),
        shape=shape,
        size="small" if radius < _SIZE_LIMIT else "large",
        motion=_motion(way),
        background=background,
    )
    return Reading(attributes, radius, (float(way[0]), float(way[1])), misfit)


def _nearest(colour: Float[Tensor, "3"], palette: dict[str, tuple[float, float, float]]) -> str:
    distances = (torch.tensor(list(palette.values())) - colour).norm(dim=1)
    return list(palette)[int(distances.argmin())]


def _centroids(cover: Float[Tensor, "T H W"]) -> Float[Tensor, "T 2"]:
    pixel = torch.arange(cover.shape[-1]) + 0.5
    mass = cover.sum(dim=(1, 2)).clamp_min(1e-6)
    x = (cover.sum(dim=1) * pixel).sum(dim=1) / mass
    y = (cover.sum(dim=2) * pixel).sum(dim=1) / mass
    return torch.stack([x, y], dim=1)


def _motion(way: Float[Tensor, "2"]) -> str:
    if way.norm() < _STILL_LIMIT:
        return MOTIONS[4]
    along_x, forward = bool(way[0].abs() > way[1].abs()), bool(way[way.abs().argmax()] > 0)
    return {(True, False): "left", (True, True): "right", (False, False): "up", (False, True): "down"}[along_x, forward]


def _match_shape(cover: Float[Tensor, "T H W"], centre: Float[Tensor, "T 2"], scale: float) -> tuple[str, float, float]:
    """Shape, radius in pixels of a 48-pixel frame, and misfit of the best template over the centred mean frame."""
    side = cover.shape[-1]
    offset = torch.arange(side) + 0.5 - side / 2
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    grid = (torch.stack([x, y], dim=-1)[None] + centre[:, None, None]) * (2 / side) - 1
    mean = F.grid_sample(cover[:, None], grid, align_corners=False, padding_mode="zeros").mean(dim=(0, 1))
    kind = torch.arange(len(SHAPES)).repeat_interleave(len(_RADII))
    radius = _RADII.repeat(len(SHAPES))
    templates = shape_cover(kind, x[None], y[None], radius[:, None, None] * scale)
    misfits = (templates - mean).abs().sum(dim=(1, 2)) / templates.sum(dim=(1, 2))
    best = int(misfits.argmin())
    return SHAPES[int(kind[best])], float(radius[best]), float(misfits[best])
