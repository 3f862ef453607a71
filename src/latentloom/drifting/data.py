"""The images of a training and those held out from it, by the settings."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import interpolate

from latentloom.drifting.config import DataConfig
from latentloom.drifting.fake_images import draw_fake_images
from latentloom.drifting.images import Images, MirroredImages, Subset, TensorImages
from latentloom.drifting.randomness import step_generator
from latentloom.errors import ConfigError

__all__ = ["ImageData", "Images", "load_data"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ImageData:
    """What a refiner is trained and evaluated on.

    Attributes:
        train: images to train on; with `flip` each of them a second time, mirrored.
        held_out: images that training never sees.
        to_pixels: samples [B, C, H, W] as pixels [B, 3 or 1, H, W] from -1 to 1.
        description: what it is, in a line.
    """

    train: Images
    held_out: Images
    to_pixels: Callable[[Tensor], Tensor]
    description: str


def load_data(config: DataConfig, device: torch.device) -> ImageData:
    """Open a dataset, split it, and have its images loaded to `device`.

    With `validation_share` a share of the training images stands in for the held-out ones, which are then not touched:
    what is chosen by looking at them is chosen without the images that the result is measured on.

    Raises:
        ConfigError: settings that do not fit the data, or a class too small to be split.
        FileError: a folder or file that is missing, empty or of another kind.
    """
    images = _open_pixels(config)
    num_images = len(images)
    train, held_out = split_by_class(images, config.held_out_share, config.split_seed, config.validation_share)
    if config.flip:
        images = MirroredImages(images)
        train = torch.cat([train, train + num_images])
    return ImageData(
        Subset(images, train, device),
        Subset(images, held_out, device),
        _within_range,
        _describe(config, images, num_images, len(train), len(held_out)),
    )


def split_by_class(
    images: Images, held_out_share: float, seed: int, validation_share: float = 0.0
) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "H"]]:
    """The numbers of the images to train on and of those held out, ascending; the same share of every class.

    Args:
        images: all of them.
        held_out_share: share of each class that is held out, at least one image of it.
        seed: decides which.
        validation_share: above 0: share of the remaining images that is held out in place of those.

    Raises:
        ConfigError: a class with too few images for its parts.
    """
    everything = torch.arange(len(images))
    train, held_out = _divide(images, everything, held_out_share, step_generator(seed, 0, "held out"))
    if validation_share:
        train, held_out = _divide(images, train, validation_share, step_generator(seed, 0, "validation"))
    return train, held_out


def _divide(
    images: Images, rows: Int64[Tensor, "N"], share: float, generator: torch.Generator
) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "H"]]:
    num_classes = len(images.class_names)
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    shuffled = shuffled[torch.argsort(images.labels[shuffled], stable=True)]
    owners = images.labels[shuffled]
    counts = torch.bincount(owners, minlength=num_classes)
    num_held = (counts * share).round().long().clamp_min(1)
    too_small = torch.nonzero(num_held >= counts).flatten().tolist()
    if too_small:
        number = too_small[0]
        raise ConfigError(
            f"class {images.class_names[number]!r} has {int(counts[number])} images to divide into training and "
            f"held-out ones, and {share:g} of it leaves a part empty; give it more images, or take it out"
        )
    rank = torch.arange(len(shuffled)) - (counts.cumsum(0) - counts)[owners]
    is_held = rank < num_held[owners]
    return shuffled[~is_held].sort().values, shuffled[is_held].sort().values


def _open_pixels(config: DataConfig) -> Images:
    if config.dataset == "digits":
        return _digits(config.pixels)
    if config.dataset == "fake":
        return draw_fake_images(config.fake_images, config.fake_classes, config.pixels, config.split_seed)
    raise ConfigError(f"dataset = {config.dataset!r}")


def _digits(size: int) -> TensorImages:
    """Handwritten digits of 8 by 8 pixels and 17 shades, which come with scikit-learn; in other sizes bicubic."""
    flat, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(flat, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    if size != 8:
        pixels = interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    names = tuple(str(number) for number in range(10))
    return TensorImages(pixels, torch.tensor(labels, dtype=torch.int64), names, json.dumps({"digits": {"size": size}}))


def _within_range(samples: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    return samples.clamp(-1, 1)


def _describe(config: DataConfig, images: Images, num_images: int, num_train: int, num_held_out: int) -> str:
    channels, height, width = images.shape
    what = "validation images out of the training part" if config.validation_share else "held-out images"
    mirrored = ", half of them mirrored" if config.flip else ""
    return (
        f"{config.dataset}: {num_images} images of {len(images.class_names)} classes as {channels}x{height}x{width} "
        f"{'latents' if config.input_space == 'latent' else 'pixels'}; {num_train} to train on{mirrored}, "
        f"{num_held_out} {what}"
    )
