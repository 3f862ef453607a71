"""The captioned world MicroWan is trained on: one plain shape on a plain background, drawn from its attributes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.micro.attributes import BACKGROUNDS, COLOURS, SHAPES, Attributes

FRAME_COUNTS = (9, 17)
FRAME_SIZES = (48, 64)
#: Radii in pixels of a 48-pixel frame; the two ranges leave a gap that a reader can decide in.
RADII = {"small": (6.0, 7.0), "large": (10.0, 11.5)}
#: Way of a moving object from the first frame to the last, in pixels of a 48-pixel frame.
TRAVEL = (12.0, 15.0)
_DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "still": (0.0, 0.0)}
_REFERENCE_SIZE = 48
_LARGEST_JITTER = 7.0
_MARGIN = 1.0
#: How far each shape reaches from its centre, in radii.
_REACH = {"circle": 1.0, "square": 0.886, "triangle": 1.35, "cross": 1.15}


@dataclass(frozen=True)
class Scene:
    """Everything needed to draw a batch of clips.

    shape: index into SHAPES; colour, background: RGB in [0, 1]; radius: pixels; centre: (x, y) pixels per frame.
    """

    shape: Tensor
    colour: Float[Tensor, "B 3"]
    background: Float[Tensor, "B 3"]
    radius: Float[Tensor, "B"]
    centre: Float[Tensor, "B T 2"]


def draw_clips(
    attributes: Sequence[Attributes],
    generator: torch.Generator,
    *,
    num_frames: int = 9,
    frame_size: int = 48,
) -> Float[Tensor, "B 3 T H W"]:
    """Clips that show the given attributes, values in [0, 1]; place, exact radius and speed are drawn at random.

    Args:
        attributes: complete attributes, one per clip.
        generator: source of the random geometry.
        num_frames: 9 or 17.
        frame_size: side of the square frame in pixels, 48 or 64.

    Raises:
        ConfigError: on another number of frames or another size.
    """
    return draw_scene(sample_scene(attributes, generator, num_frames, frame_size), frame_size)


def sample_scene(
    attributes: Sequence[Attributes], generator: torch.Generator, num_frames: int = 9, frame_size: int = 48
) -> Scene:
    """Random geometry for the given attributes; the whole object stays inside the frame in every frame."""
    if num_frames not in FRAME_COUNTS or frame_size not in FRAME_SIZES:
        raise ConfigError(
            f"the world has no clips of {num_frames} frames of {frame_size} pixels: "
            f"choose frames from {FRAME_COUNTS} and a size from {FRAME_SIZES}"
        )
    count, scale = len(attributes), frame_size / _REFERENCE_SIZE
    low, high = torch.tensor([RADII[item.size or "small"] for item in attributes]).unbind(1)
    radius = (low + (high - low) * torch.rand(count, generator=generator)) * scale
    direction = torch.tensor([_DIRECTIONS[item.motion or "still"] for item in attributes])
    travel = (TRAVEL[0] + (TRAVEL[1] - TRAVEL[0]) * torch.rand(count, 1, generator=generator)) * scale
    way = direction * travel
    reach = torch.tensor([_REACH[item.shape or "circle"] for item in attributes]) * radius
    room = frame_size / 2 - reach[:, None] - way.abs() / 2 - _MARGIN * scale
    jitter = room.clamp(0, _LARGEST_JITTER * scale) * (2 * torch.rand(count, 2, generator=generator) - 1)
    phase = torch.linspace(-0.5, 0.5, num_frames)
    centre = frame_size / 2 + jitter[:, None] + way[:, None] * phase[None, :, None]
    return Scene(
        shape=torch.tensor([SHAPES.index(item.shape or "circle") for item in attributes]),
        colour=torch.tensor([COLOURS[item.colour or "red"] for item in attributes]),
        background=torch.tensor([BACKGROUNDS[item.background or "black"] for item in attributes]),
        radius=radius,
        centre=centre,
    )


def draw_scene(scene: Scene, frame_size: int) -> Float[Tensor, "B 3 T H W"]:
    """The clips of a scene, anti-aliased, values in [0, 1]."""
    pixel = torch.arange(frame_size) + 0.5
    x = pixel[None, None, None, :] - scene.centre[..., 0, None, None]
    y = pixel[None, None, :, None] - scene.centre[..., 1, None, None]
    cover = shape_cover(scene.shape, x, y, scene.radius[:, None, None, None])[:, None]
    colour, background = scene.colour[..., None, None, None], scene.background[..., None, None, None]
    return background + (colour - background) * cover


def shape_cover(
    shape: Tensor, x: Float[Tensor, "#B *#rest"], y: Float[Tensor, "#B *#rest"], radius: Float[Tensor, "#B *#rest"]
) -> Float[Tensor, "B *rest"]:
    """Share of each pixel that the shape covers, from its signed distance; x and y are offsets from its centre."""
    x, y, radius = torch.broadcast_tensors(x, y, radius)
    distance = torch.empty_like(x)
    for index, name in enumerate(SHAPES):
        chosen = shape == index
        distance[chosen] = _DISTANCES[name](x[chosen], y[chosen], radius[chosen])
    return (0.5 - distance).clamp(0, 1)


def _circle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return (x.square() + y.square()).sqrt() - radius


def _square_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) - _REACH["square"] * radius


def _triangle_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    inradius = _REACH["triangle"] / 2 * radius
    return torch.maximum(y, 3**0.5 / 2 * x.abs() - y / 2) - inradius


def _cross_distance(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    across, down = x.abs(), y.abs()
    arm, half_width = _REACH["cross"] * radius, 0.4 * radius
    return torch.minimum(torch.maximum(across - arm, down - half_width), torch.maximum(across - half_width, down - arm))


_DISTANCES = {
    "circle": _circle_distance,
    "square": _square_distance,
    "triangle": _triangle_distance,
    "cross": _cross_distance,
}
