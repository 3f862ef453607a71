"""Image and video files as frames of one size.

A video that is faster than the model is thinned to the model's rate by its frames' times; a slower one keeps its
frames as they are. Its first frames are used. Nothing holds more of a video than the frames that are asked for.
"""

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from latentloom.errors import CorruptFileError
from latentloom.wan.clip_size import ClipSize

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif"})

Content = TypeVar("Content")

# what Pillow raises on damaged files
_BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_BROKEN_VIDEO = (FFmpegError, OSError, ValueError, OverflowError)
_SLACK = 0.25
"""Share of the model's frame time by which a frame may be early: files round times, some of them to milliseconds."""


@dataclass(frozen=True)
class MediaFacts:
    """What an item's size is chosen by.

    Args:
        width, height: as shown, turned and stretched as the file says.
        num_frames: at the model's rate; 1 for an image.
    """

    width: float
    height: float
    num_frames: int


def is_video(path: Path) -> bool:
    """True for files that are decoded as videos, animated GIFs among them."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def is_media(path: Path) -> bool:
    """True for the images and videos that can be trained on, by their suffix."""
    return path.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES


def look_at(path: Path, fps: float) -> MediaFacts:
    """The shown size of an image or video and its number of frames.

    An image's pixels are not read; of a video, one frame is decoded, and the others are counted by their packets.

    Args:
        path: the file.
        fps: the model's frames per second.

    Raises:
        CorruptFileError: it cannot be decoded.
    """
    if not is_video(path):
        with _opened_image(path) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
        return MediaFacts(height, width, 1) if turned else MediaFacts(width, height, 1)
    with _opened_video(path) as (container, stream):  # twice, as packets cannot be counted once some are decoded
        frame = next(container.decode(stream), None)
        if frame is None or frame.is_corrupt:
            raise CorruptFileError(f"{path} has no frame that can be decoded; give another file")
        stretch = float(stream.sample_aspect_ratio or 1)
        width, height = frame.width * stretch, float(frame.height)
        if abs(frame.rotation) == 90:
            width, height = height, width
    with _opened_video(path) as (container, stream):
        return MediaFacts(width, height, sum(1 for _ in _at_rate(_packet_times(container, stream), fps)))


def read_frames(path: Path, size: ClipSize, fps: float) -> UInt8[Tensor, "T H W 3"]:
    """The first frames of an image or video in that size: scaled to cover it, the middle cut out.

    Args:
        path: the file.
        size: frames, height and width that are wanted.
        fps: the model's frames per second.

    Raises:
        CorruptFileError: it cannot be decoded, or has fewer frames.
    """
    frames = np.empty((size.num_frames, size.height, size.width, 3), dtype=np.uint8)
    if not is_video(path):
        with _opened_image(path) as image:
            frames[:] = _fit(_upright(image), size)
        return torch.from_numpy(frames)
    num_read = 0
    with _opened_video(path) as (container, stream):
        stretch = float(stream.sample_aspect_ratio or 1)
        stream.thread_type = "AUTO"
        for _, frame in _at_rate(_decoded(container, stream), fps):
            if frame.is_corrupt:
                raise CorruptFileError(f"{path} is damaged at frame {num_read + 1}; give another file")
            picture = Image.fromarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
            frames[num_read] = _fit(picture, size, stretch if abs(frame.rotation) != 90 else 1 / stretch)
            num_read += 1
            if num_read == size.num_frames:
                return torch.from_numpy(frames)
    raise CorruptFileError(f"{path} decodes to {num_read} of the {size.num_frames} frames that it promises")


@contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    try:
        _refuse_empty(path)
        with Image.open(path) as image:
            yield image
    except _BROKEN_IMAGE as error:
        raise CorruptFileError(f"{path} cannot be decoded ({_reason(error)}); give another file") from error


@contextmanager
def _opened_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        _refuse_empty(path)
        with av.open(str(path.resolve()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise CorruptFileError(f"{path} has no pictures that can be decoded; give another file")
            yield container, container.streams.video[0]
    except _BROKEN_VIDEO as error:
        raise CorruptFileError(f"{path} cannot be decoded ({_reason(error)}); give another file") from error


def _refuse_empty(path: Path) -> None:
    if path.stat().st_size == 0:
        raise CorruptFileError(f"{path} is empty (0 bytes); give another file")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError | FFmpegError) and error.strerror:
        return error.strerror
    named = isinstance(error, Image.UnidentifiedImageError) or not str(error)  # its text repeats the path
    return type(error).__name__ if named else str(error).splitlines()[0][:80]


def _upright(image: Image.Image) -> Image.Image:
    """The image as it is shown, in RGB; where it is transparent, white shows through."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        coloured = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), coloured).convert("RGB")
    return image.convert("RGB")


def _fit(picture: Image.Image, size: ClipSize, stretch: float = 1.0) -> UInt8[np.ndarray, "H W 3"]:
    """The middle of a picture at that size; `stretch` is how wide its pixels are shown by how high."""
    width, height = picture.size
    scale = max(size.width / (width * stretch), size.height / height)
    cut_x, cut_y = width - size.width / (scale * stretch), height - size.height / scale
    box = (cut_x / 2, cut_y / 2, width - cut_x / 2, height - cut_y / 2)
    return np.asarray(picture.resize((size.width, size.height), Image.Resampling.LANCZOS, box=box))


def _at_rate(timed: Iterable[tuple[float, Content]], fps: float) -> Iterator[tuple[float, Content]]:
    """Of frames in the order of their times in seconds, those that are due at the model's rate."""
    due: float | None = None
    for time, frame in timed:
        if due is not None and time < due - _SLACK / fps:
            continue
        # later than frames can be where they are faster than the model: what comes next is counted from here, so that
        # a gap is not made up for by faster frames behind it
        is_late = due is None or time - due >= (1 - _SLACK) / fps
        due = (time if due is None or is_late else due) + 1 / fps
        yield time, frame


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, av.VideoFrame]]:
    for number, frame in enumerate(container.decode(stream)):
        yield (frame.time if frame.time is not None else number / float(stream.average_rate or 1)), frame


def _packet_times(container: InputContainer, stream: VideoStream) -> list[tuple[float, None]]:
    """The times of all frames, ascending, from their packets alone."""
    times = []
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:  # the end of the stream, or what an edit list cuts away
            continue
        time = packet.pts if packet.pts is not None else packet.dts
        unit = float(packet.time_base or 1)
        times.append(time * unit if time is not None else len(times) / float(stream.average_rate or 1))
    return [(time, None) for time in sorted(times)]


_ORIENTATION = 0x0112  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # its values that exchange width and height
