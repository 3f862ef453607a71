"""Images made of nothing but numbers: each class has a colour and a shape, on noise."""

import json
import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.images import TensorImages, bytes_from_pixels
from latentloom.errors import ConfigError
from latentloom.runs.randomness import step_generator

NOISE = 0.15  # deviation of the background around its grey, of a range from -1 to 1


def draw_fake_images(num_images: int, num_classes: int, size: int, seed: int) -> TensorImages:
    """RGB images of discs, squares, rings and stripes at random places; colour and shape tell the class.

    Args:
        num_images: of all classes, which take turns.
        num_classes: at most as many as images.
        size: height and width in pixels.
        seed: of places, sizes and noise.

    Raises:
        ConfigError: more classes than images.
    """
    if num_classes > num_images:
        raise ConfigError(f"{num_images} fake_images of {num_classes} fake_classes; give at least one image per class")
    generator = step_generator(seed, 0, "fake images")
    labels = torch.arange(num_images) % num_classes
    centre = torch.rand(num_images, 2, generator=generator) * 0.4 + 0.3
    radius = torch.rand(num_images, generator=generator) * 0.12 + 0.16
    values = torch.empty(num_images, 3, size, size, dtype=torch.uint8)
    for start in range(0, num_images, 256):  # bytes are a quarter of what is drawn, so not all is drawn at once
        rows = slice(start, start + 256)
        cover = _shapes(labels[rows], centre[rows], radius[rows], size)[:, None]
        noise = NOISE * torch.randn(len(cover), 3, size, size, generator=generator)
        colour = _colours(labels[rows], num_classes)[:, :, None, None]
        values[rows] = bytes_from_pixels(cover * colour + (1 - cover) * noise)
    names = tuple(f"{number:03d}" for number in range(num_classes))
    settings = {"images": num_images, "classes": num_classes, "size": size, "seed": seed}
    return TensorImages(values, labels, names, json.dumps({"fake": settings}))


def _shapes(
    labels: Int64[Tensor, "B"], centre: Float[Tensor, "B 2"], radius: Float[Tensor, "B"], size: int
) -> Float[Tensor, "B size size"]:
    """How much of each pixel a shape covers; the edge is one pixel wide."""
    grid = (torch.arange(size) + 0.5) / size
    down, across = grid[None, :, None] - centre[:, 0, None, None], grid[None, None, :] - centre[:, 1, None, None]
    radius = radius[:, None, None]
    round_distance, square_distance = torch.hypot(down, across), torch.maximum(down.abs(), across.abs())
    stripes = torch.maximum(square_distance, radius - (down / radius * 3 * math.pi / 2).cos().abs() * radius)
    kinds = torch.stack(
        [
            round_distance - radius,
            square_distance - radius,
            (round_distance - 0.75 * radius).abs() - 0.25 * radius,
            stripes - 0.8 * radius,
        ]
    )
    distance = kinds[labels % len(kinds), torch.arange(len(labels))]
    return (0.5 - distance * size).clamp(0, 1)


def _colours(labels: Int64[Tensor, "B"], num_classes: int) -> Float[Tensor, "B 3"]:
    """Bright colours around the circle of hues."""
    hue = labels.float() / num_classes
    return torch.stack([(2 * math.pi * (hue + shift / 3)).cos() for shift in range(3)], dim=1) * 0.9
