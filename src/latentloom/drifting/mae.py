"""A masked autoencoder for small images and latents, whose encoder gives the features that drifting compares."""

from collections.abc import Mapping
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, ValidationError
from torch import Tensor, nn

from latentloom.errors import CheckpointError, FileError, ShapeError
from latentloom.runs import Config
from latentloom.storage import read_module, save_module

ADAM_NAMES = ("encoder.stem", "decoder.output", "head")
"""Input and output layers: matrices that Muon is not meant for."""

_CHANNELS_PER_GROUP = 4  # groups of one channel would erase a map of one cell
_MOST_GROUPS = 8

Count = Annotated[int, Field(ge=1)]


class MaeShape(Config):
    """What an autoencoder is made of.

    Args:
        channels: of the samples: 1 or 3 for pixels, those of the VAE for latents.
        width: channels of the first stage; each further stage has twice as many.
        stages: of the encoder; the first keeps the resolution, each further one halves it.
        blocks: residual blocks per stage of the encoder.
        mask_patch: side of a hidden square, in cells of the samples.
        num_classes: of the classification head; 0 for none.
    """

    channels: Count
    width: Count = 32
    stages: Count = 3
    blocks: Count = 2
    mask_patch: Count = 2
    num_classes: Annotated[int, Field(ge=0)] = 0


class MaeOutput(NamedTuple):
    """Samples as reconstructed, and the class logits where the autoencoder has a head."""

    samples: Float[Tensor, "B C H W"]
    logits: Float[Tensor, "B K"] | None


class LatentMae(nn.Module):
    """Reconstructs hidden squares of a sample: a ResNet encoder with GroupNorm and a U-Net decoder.

    Source: the drifting document, "8xB200 Readiness"; He et al. 2022, arXiv:2111.06377 (masked autoencoders), with
    convolutions in place of attention.
    """

    def __init__(self, shape: MaeShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = ResNetEncoder(shape)
        self.decoder = UNetDecoder(shape)
        self.head = nn.Linear(shape.width * 2 ** (shape.stages - 1), shape.num_classes) if shape.num_classes else None

    def forward(self, samples: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B H W"]) -> MaeOutput:
        """Samples reconstructed from what is left of them.

        Args:
            samples: pixels from -1 to 1 or normalised latents.
            hidden: true on the cells that the encoder does not see; they are 0 for it.
        """
        maps = self.encoder(samples.masked_fill(hidden.unsqueeze(1), 0.0))
        logits = None if self.head is None else self.head(maps[-1].mean(dim=(2, 3)))
        return MaeOutput(self.decoder(maps), logits)

    def encode(self, samples: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of all stages, fine to coarse, of samples of which nothing is hidden."""
        return self.encoder(samples)


class ResNetEncoder(nn.Module):
    """One map per stage, fine to coarse."""

    def __init__(self, shape: MaeShape) -> None:
        super().__init__()
        self.stem = nn.Conv2d(shape.channels, shape.width, 3, padding=1)
        widths = [shape.width * 2**number for number in range(shape.stages)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                ResidualBlock(widths[max(number - 1, 0)], width, stride=1 if number == 0 else 2),
                *(ResidualBlock(width, width) for _ in range(shape.blocks - 1)),
            )
            for number, width in enumerate(widths)
        )

    def forward(self, samples: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        # about a third faster, on the CPU too
        features = self.stem(samples).contiguous(memory_format=torch.channels_last)
        maps = []
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class UNetDecoder(nn.Module):
    """From the coarsest map back to a sample, joined by each finer map of the encoder on the way."""

    def __init__(self, shape: MaeShape) -> None:
        super().__init__()
        widths = [shape.width * 2**number for number in reversed(range(shape.stages))]
        # narrowing before enlarging costs a quarter of doing it after
        self.narrow = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for coarse, fine in pairwise(widths))
        # one convolution each: whatever the decoder cannot do, the encoder has to learn
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1, bias=False), _norm(width), nn.ReLU())
            for width in widths[1:]
        )
        self.output = nn.Conv2d(shape.width, shape.channels, 3, padding=1)

    def forward(self, maps: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B C H W"]:
        """A sample of the finest map's size; maps are fine to coarse."""
        features = maps[-1]
        for narrow, merge, skip in zip(self.narrow, self.merge, reversed(maps[:-1]), strict=True):
            enlarged = F.interpolate(narrow(features), size=skip.shape[2:], mode="nearest")
            features = merge(torch.cat([enlarged, skip], dim=1))
        return self.output(features)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; a stride of 2 halves the resolution, rounded up."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        # a bias before a norm does nothing, and Adam would blow up the rounding errors of its gradient
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = _norm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = _norm(outputs)
        is_plain = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Float[Tensor, "B _ _ _"]) -> Float[Tensor, "B _ _ _"]:
        inner = F.relu(self.first_norm(self.first(features)))
        return F.relu(self.second_norm(self.second(inner)) + self.shortcut(features))


def draw_hidden(
    batch: int, size: tuple[int, int], patch: int, ratio: float, generator: torch.Generator
) -> Bool[Tensor, "B H W"]:
    """Cells to hide: of every image the same number of squares, wherever the generator says.

    Args:
        batch: B.
        size: H and W.
        patch: side of a square; squares at the right and lower edge are smaller where it does not divide H or W.
        ratio: share of the squares that are hidden, rounded to a whole number of them, at least one, never all.
        generator: on the CPU.

    Raises:
        ShapeError: the image is a single square.
    """
    rows, columns = (-(-side // patch) for side in size)
    num_squares = rows * columns
    if num_squares < 2:
        raise ShapeError(f"images of {size[0]} x {size[1]} are one square of mask_patch = {patch}; give a smaller one")
    num_hidden = min(max(round(ratio * num_squares), 1), num_squares - 1)
    chosen = torch.rand(batch, num_squares, generator=generator).topk(num_hidden, dim=1).indices
    squares = torch.zeros(batch, num_squares, dtype=torch.bool).scatter_(1, chosen, True).view(batch, rows, columns)
    return squares.repeat_interleave(patch, dim=1)[:, : size[0]].repeat_interleave(patch, dim=2)[..., : size[1]]


def reconstruction_loss(
    reconstructed: Float[Tensor, "B C H W"], samples: Float[Tensor, "B C H W"], hidden: Bool[Tensor, "B H W"]
) -> Float[Tensor, "B"]:
    """Mean squared error of each image over its hidden cells alone, float32."""
    errors = (reconstructed.float() - samples.float()).square().mean(dim=1)
    return (errors * hidden).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2))


def save_mae(path: Path | str, mae: LatentMae, record: Mapping[str, Any] | None = None) -> None:
    """Write an autoencoder with its shape and the record of its training."""
    save_module(path, mae.state_dict(), LatentMae.__name__, mae.shape.model_dump(mode="json"), record)


def load_mae(path: Path | str) -> LatentMae:
    """An autoencoder from its file, frozen, on the CPU.

    Raises:
        FileError: no such file, or a file of something else.
        CheckpointError: its tensors are not exactly those of its shape.
    """
    stored = read_module(path)
    if stored.kind != LatentMae.__name__:
        raise FileError(f"{path} holds {stored.kind}; give an autoencoder that `latentloom drift train-mae` wrote")
    try:
        shape = MaeShape.model_validate(stored.config)
    except ValidationError as error:
        raise CheckpointError(f"{path} has settings of no known autoencoder: {error.errors()[0]['loc']}") from error
    with torch.device("meta"):
        mae = LatentMae(shape)
    expected = {name: tensor.shape for name, tensor in mae.state_dict().items()}
    found = {name: tensor.shape if tensor.is_floating_point() else None for name, tensor in stored.tensors.items()}
    if found != expected:
        differing = sorted(name for name in expected.keys() | found if expected.get(name) != found.get(name))
        raise CheckpointError(
            f"{path} does not hold the tensors of its settings ({len(differing)} differ, such as {differing[0]}); "
            "train it again"
        )
    mae.load_state_dict(stored.tensors, assign=True)
    return mae.float().eval().requires_grad_(False)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(gcd(channels, max(channels // _CHANNELS_PER_GROUP, 1), _MOST_GROUPS), channels)
