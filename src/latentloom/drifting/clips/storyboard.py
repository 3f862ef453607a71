"""A storyboard: images as the keyframes of a clip, at their times."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.drifting.clips.encode import ClipEncoder
from latentloom.drifting.image_folder import SUFFIXES, read_fitted_image
from latentloom.drifting.images import pixels_from_bytes
from latentloom.errors import ConfigError, FileError


@dataclass(frozen=True, eq=False)
class Storyboard:
    """Keyframes of one clip.

    Attributes:
        values: the clip; zeros where no keyframe stands.
        given: true where one does.
    """

    values: Float[Tensor, "1 C T H W"]
    given: Bool[Tensor, "1 T"]


def find_keyframes(where: str) -> list[Path]:
    """The image files of a folder in the order of their names, or those of a list with commas in its own order.

    Raises:
        FileError: no such folder or file, or a folder without images.
    """
    folder = Path(where)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise FileError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); give a folder of keyframes")
        return files
    files = [Path(part.strip()) for part in where.split(",") if part.strip()]
    missing = [str(file) for file in files if not file.is_file()]
    if missing or not files:
        raise FileError(f"{missing[0] if missing else where!r} is no file; give image files with commas, or a folder")
    return files


def keyframe_times(times: Sequence[int] | None, num_keyframes: int, num_frames: int) -> list[int]:
    """Which frame each keyframe is; evenly from the first frame to the last where not given.

    Raises:
        ConfigError: not one time for each keyframe, times that do not rise, or that are not in the clip.
    """
    if num_keyframes > num_frames:
        raise ConfigError(f"{num_keyframes} keyframes for a clip of {num_frames} frames; give fewer")
    if times is None:
        return torch.linspace(0, num_frames - 1, num_keyframes).round().long().tolist() if num_keyframes > 1 else [0]
    if len(times) != num_keyframes:
        raise ConfigError(f"{len(times)} times for {num_keyframes} keyframes; give one for each")
    if any(later <= earlier for earlier, later in pairwise(times)):
        raise ConfigError(f"times {','.join(map(str, times))} do not rise; give the keyframes in their order")
    if times[0] < 0 or times[-1] >= num_frames:
        raise ConfigError(
            f"times {','.join(map(str, times))}; the refiner's clips have the frames 0 to {num_frames - 1}"
        )
    return list(times)


def make_storyboard(
    files: Sequence[os.PathLike[str]], times: Sequence[int], encoder: ClipEncoder, shape: tuple[int, int, int, int]
) -> Storyboard:
    """Read the keyframes' images and encode them.

    Where the VAE compresses time, a keyframe is taken for a moment in which nothing moves.

    Args:
        files: one image for each keyframe; others than the refiner's size are scaled, and cut where they stick out.
        times: which frame of the clip each one is.
        encoder: into the space of the refiner's clips.
        shape: channels, frames, rows and columns of those.

    Raises:
        CorruptFileError: an image that cannot be decoded.
    """
    channels, num_frames, rows, columns = shape
    size = (rows * encoder.multiple, columns * encoder.multiple)
    images = torch.stack([read_fitted_image(Path(file), *size) for file in files])
    pixels = pixels_from_bytes(images).permute(0, 3, 1, 2).unsqueeze(2)
    if encoder.frames == "clip":
        first = encoder.encode(pixels)
        later = encoder.encode(pixels.expand(-1, -1, 1 + encoder.temporal_stride, -1, -1))[:, :, 1:]
        is_first = torch.tensor([time == 0 for time in times]).view(-1, 1, 1, 1, 1)
        encoded = torch.where(is_first, first, later)
    else:
        encoded = encoder.encode(pixels)
    values = torch.zeros(1, channels, num_frames, rows, columns)
    values[0, :, list(times)] = encoded.squeeze(2).transpose(0, 1)
    given = torch.zeros(1, num_frames, dtype=torch.bool)
    given[0, list(times)] = True
    return Storyboard(values, given)
