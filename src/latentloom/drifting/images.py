"""Labelled images of one shape, and the views on them that a training needs."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

MIRRORED = " and mirrored"  # added to a fingerprint


class Images(ABC):
    """Labelled images that are loaded when they are asked for.

    Args:
        labels: class number of each image.
        class_names: by class number.
        shape: (C, H, W) of an image.
        fingerprint: tells these images from all others, so that what is computed from them can be stored under it.
        is_mirrored: True where the second half are the images of the first half, mirrored.
    """

    def __init__(
        self,
        labels: Int64[Tensor, "N"],
        class_names: tuple[str, ...],
        shape: tuple[int, int, int],
        fingerprint: str,
        is_mirrored: bool = False,
    ) -> None:
        self.labels = labels
        self.class_names = class_names
        self.shape = shape
        self.fingerprint = fingerprint
        self.is_mirrored = is_mirrored

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """The images of these numbers in float32: pixels from -1 to 1, or normalised latents."""


class TensorImages(Images):
    """Images that are held in memory.

    Args:
        values: bytes of pixels, or the numbers as `load` gives them.
        labels, class_names, fingerprint, is_mirrored: see Images.
    """

    def __init__(
        self,
        values: Shaped[Tensor, "N C H W"],
        labels: Int64[Tensor, "N"],
        class_names: tuple[str, ...],
        fingerprint: str,
        is_mirrored: bool = False,
    ) -> None:
        channels, height, width = values.shape[1:]
        super().__init__(labels, class_names, (channels, height, width), fingerprint, is_mirrored)
        self.values = values

    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Images."""
        values = self.values[indices.cpu()]
        return pixels_from_bytes(values) if values.dtype == torch.uint8 else values.float()


class MirroredImages(Images):
    """Every image of another set, and after them every one mirrored: image N + i is image i from right to left."""

    def __init__(self, images: Images) -> None:
        labels = torch.cat([images.labels, images.labels])
        super().__init__(labels, images.class_names, images.shape, f"{images.fingerprint}{MIRRORED}", is_mirrored=True)
        self.images = images

    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Images."""
        indices = indices.cpu()
        values = self.images.load(indices % len(self.images))
        is_mirrored = (indices >= len(self.images)).to(values.device).view(-1, 1, 1, 1)
        return torch.where(is_mirrored, values.flip(-1), values)


class Subset(Images):
    """Some images of another set, loaded to a device.

    Args:
        images: the other set.
        rows: their numbers there.
        device: where loaded images go.
    """

    def __init__(self, images: Images, rows: Int64[Tensor, "M"], device: torch.device) -> None:
        super().__init__(images.labels[rows], images.class_names, images.shape, images.fingerprint)
        self.images = images
        self.rows = rows
        self.device = device

    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Images."""
        return self.images.load(self.rows[indices.cpu()]).to(self.device)


def pixels_from_bytes(values: Shaped[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Pixels from -1 to 1 of bytes."""
    return values.float() / 127.5 - 1


def bytes_from_pixels(pixels: Float[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Bytes of pixels from -1 to 1; what lies outside is cut off."""
    return ((pixels.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
