"""The images of a training and those held out from it, by the settings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from latentloom.drifting.config import DataConfig
from latentloom.drifting.fake_images import draw_fake_images
from latentloom.drifting.image_folder import FolderImages, ImageFiles
from latentloom.drifting.images import MIRRORED, Images, MirroredImages, Subset, TensorImages
from latentloom.errors import ConfigError
from latentloom.runs.randomness import step_generator

__all__ = ["ImageData", "Images", "load_data"]

ToPixels = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B colours rows columns"]]


@dataclass(frozen=True, eq=False)
class ImageData:
    """What a refiner is trained and evaluated on.

    Attributes:
        train: images to train on; with `flip` each of them a second time, mirrored.
        held_out: images that training never sees.
        to_pixels: samples [B, C, H, W] as pixels [B, 3 or 1, H, W] from -1 to 1.
        description: what it is, in a line.
        has_pixels: false for latents whose VAE is not known: `to_pixels` then raises ConfigError.
    """

    train: Images
    held_out: Images
    to_pixels: ToPixels
    description: str
    has_pixels: bool = True


def load_data(config: DataConfig, device: torch.device) -> ImageData:
    """Open a dataset, split it, and have its images loaded to `device`.

    With `validation_share` a share of the training images stands in for the held-out ones, which are then not touched:
    what is chosen by looking at them is chosen without the images that the result is measured on.

    Raises:
        ConfigError: settings that do not fit the data, or a class too small to be split.
        FileError: a folder or file that is missing, empty or of another kind, or latents of something else.
    """
    _refuse_idle_settings(config)
    if config.dataset == "shards":
        return _frames_of_shards(config, device)
    images, to_pixels = _open_latents(config, device) if config.input_space == "latent" else _open_pixels(config)
    num_images = len(images) // 2 if images.is_mirrored else len(images)
    labels, names = images.labels[:num_images], images.class_names
    train, held_out = split_by_class(labels, names, config.held_out_share, config.split_seed, config.validation_share)
    if config.flip:
        train = torch.cat([train, train + num_images])
    return ImageData(
        Subset(images, train, device),
        Subset(images, held_out, device),
        to_pixels,
        _describe(config, images, num_images, len(train), len(held_out)),
    )


def _frames_of_shards(config: DataConfig, device: torch.device) -> ImageData:
    from latentloom.drifting.clips.config import ClipDataConfig
    from latentloom.drifting.clips.data import frame_data, load_clips

    assert config.data_root is not None
    names = {"data_root", "held_out_root", "held_out_share", "split_seed"}
    clips = load_clips(ClipDataConfig(**config.model_dump(include=names)), device)
    if clips.space != config.input_space:
        raise ConfigError(
            f"{config.data_root} holds {clips.space}s; set input_space = {clips.space!r}, not {config.input_space!r}"
        )
    return frame_data(clips, config.vae_root)


def split_by_class(
    labels: Int64[Tensor, "N"],
    class_names: Sequence[str],
    held_out_share: float,
    seed: int,
    validation_share: float = 0.0,
) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "H"]]:
    """The numbers of the images to train on and of those held out, ascending; the same share of every class.

    Args:
        labels: class number of each image.
        class_names: by class number.
        held_out_share: share of each class that is held out, at least one image of it.
        seed: decides which.
        validation_share: above 0: share of the remaining images that is held out in place of those.

    Raises:
        ConfigError: a class with too few images for its parts.
    """
    everything = torch.arange(len(labels))
    train, held_out = _divide(labels, class_names, everything, held_out_share, step_generator(seed, 0, "held out"))
    if validation_share:
        train, held_out = _divide(labels, class_names, train, validation_share, step_generator(seed, 0, "validation"))
    return train, held_out


def _divide(
    labels: Int64[Tensor, "N"],
    class_names: Sequence[str],
    rows: Int64[Tensor, "R"],
    share: float,
    generator: torch.Generator,
) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "H"]]:
    shuffled = rows[torch.randperm(len(rows), generator=generator)]
    shuffled = shuffled[torch.argsort(labels[shuffled], stable=True)]
    owners = labels[shuffled]
    counts = torch.bincount(owners, minlength=len(class_names))
    num_held = (counts * share).round().long().clamp_min(1)
    too_small = torch.nonzero(num_held >= counts).flatten().tolist()
    if too_small:
        number = too_small[0]
        raise ConfigError(
            f"class {class_names[number]!r} has {int(counts[number])} images to divide into training and "
            f"held-out ones, and {share:g} of it leaves a part empty; give it more images, or take it out"
        )
    rank = torch.arange(len(shuffled)) - (counts.cumsum(0) - counts)[owners]
    is_held = rank < num_held[owners]
    return shuffled[~is_held].sort().values, shuffled[is_held].sort().values


def _open_pixels(config: DataConfig) -> tuple[Images, ToPixels]:
    _, open_images = _find_pixels(config)
    return open_images(), _within_range


def _open_latents(config: DataConfig, device: torch.device) -> tuple[Images, ToPixels]:
    # the VAE's library takes seconds to import
    from latentloom.drifting.latent_data import ImageVae, latents_of, read_latents, require_decodable

    vae = ImageVae(config.vae_root, device)
    if config.dataset != "latents" or config.data_root is None:
        vae.require_size(config.pixels)
        return latents_of(*_find_pixels(config), vae, config.latent_cache), vae.decode
    latents = read_latents(config.data_root)
    require_decodable(latents, config.data_root, vae)
    if config.flip and not latents.is_mirrored:
        raise ConfigError(
            f"{config.data_root} was made without mirrored images, and latents cannot be mirrored; "
            "leave out flip, or make the file with it"
        )
    return latents, vae.decode


def _find_pixels(config: DataConfig) -> tuple[str, Callable[[], Images]]:
    """The fingerprint of the images and what opens them, which decodes every file of a folder."""
    if config.dataset == "imagefolder" and config.data_root is not None:
        listed, size = ImageFiles.of(config.data_root), config.pixels
        found, open_images = listed.fingerprint(size), lambda: FolderImages(listed, size)
    else:
        images = _digits(config.pixels) if config.dataset == "digits" else _fake(config)
        found, open_images = images.fingerprint, lambda: images
    if config.flip:
        return f"{found}{MIRRORED}", lambda: MirroredImages(open_images())
    return found, open_images


def _fake(config: DataConfig) -> Images:
    return draw_fake_images(config.fake_images, config.fake_classes, config.pixels, config.split_seed)


def _refuse_idle_settings(config: DataConfig) -> None:
    for name in ("image_size", "latent_cache"):
        if config.dataset == "latents" and getattr(config, name) is not None:
            raise ConfigError(f"{name} has no effect with dataset = 'latents'; leave it out")
    for name in ("image_size", "latent_cache", "flip", "validation_share"):
        if config.dataset == "shards" and getattr(config, name):
            raise ConfigError(f"{name} has no effect with dataset = 'shards'; leave it out")


def _digits(size: int) -> TensorImages:
    """Handwritten digits of 8 by 8 pixels and 17 shades, which come with scikit-learn; in other sizes bicubic."""
    from sklearn.datasets import load_digits  # seconds to import, and the other data sets do without

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
