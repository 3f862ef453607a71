"""Videos cut into clips: runs of frames, made smaller by averaging blocks, divided into square tiles."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from latentloom.drifting.clips.encode import SourceClip
from latentloom.drifting.images import pixels_from_bytes
from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.runs import track

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".webm", ".avi", ".gif"})
TRAIN, HELD_OUT = "train", "held_out"


@dataclass(frozen=True)
class VideoFile:
    """A video whose frames can all be decoded.

    Attributes:
        path: the file.
        num_frames: as they are decoded.
        height, width: of a frame as it is shown, in pixels.
        fps: frames per second.
    """

    path: Path
    num_frames: int
    height: int
    width: int
    fps: float

    def frames(self, height: int | None) -> Iterator[Float[Tensor, "3 H W"]]:
        """The frames in their order, RGB from -1 to 1, averaged over square blocks.

        Args:
            height: about this high, as far as whole blocks allow; None keeps the size.
        """
        block = block_size(self.height, height)
        with _opened(self.path) as (container, stream):
            for frame in container.decode(stream):
                yield average_blocks(torch.from_numpy(_upright(frame)).permute(2, 0, 1), block)


@dataclass(frozen=True)
class Windows:
    """How clips are cut out of a video.

    Args:
        num_frames: of a clip.
        hop: frames from the start of a clip to that of the next.
        height: of a frame after averaging blocks, about; None keeps the size.
        tile: side of the square tiles, in pixels after averaging; None takes whole frames.
        multiple: sides of whole frames are cut to multiples of it.
        held_out_share: of every video, the last frames, from which no training clip has any.

    Raises:
        ConfigError: a number that is not allowed.
    """

    num_frames: int = 17
    hop: int = 17
    height: int | None = None
    tile: int | None = None
    multiple: int = 1
    held_out_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_frames", "hop", "height", "tile"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} = {value}; give 1 or more")
        if not 0 <= self.held_out_share < 1:
            raise ConfigError(f"held_out_share = {self.held_out_share}; give 0 or more and less than 1")
        if self.tile is not None and self.tile % self.multiple:
            raise ConfigError(f"tile = {self.tile} is no multiple of {self.multiple}, the stride of the VAE")

    def starts(self, num_frames: int) -> dict[int, str]:
        """First frame of every clip of a video, and the part it belongs to; no frame is in clips of both parts.

        Args:
            num_frames: of the video.
        """
        border = num_frames - round(num_frames * self.held_out_share)
        parts = {TRAIN: range(0, border - self.num_frames + 1, self.hop)}
        if self.held_out_share:
            parts[HELD_OUT] = range(border, num_frames - self.num_frames + 1, self.hop)
        return {start: part for part, starts in parts.items() for start in starts}


def find_videos(folder: Path) -> list[VideoFile]:
    """The videos of a folder and those below it, each decoded once to its end; a damaged one is named and left out.

    Raises:
        FileError: no folder, or no video in it.
        CorruptFileError: none that can be decoded.
    """
    if not folder.is_dir():
        raise FileError(f"{folder} is no folder; give one with videos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise FileError(f"{folder} holds no videos ({', '.join(sorted(SUFFIXES))}); give another folder")
    videos = []
    for path in track(paths, "looking at videos"):
        try:
            videos.append(look_at_video(path))
        except CorruptFileError as error:
            logger.warning("left out: %s", error)
    if not videos:
        raise CorruptFileError(f"none of the {len(paths)} videos of {folder} can be decoded; give others")
    return videos


def look_at_video(path: Path) -> VideoFile:
    """A video, decoded once from end to end, as what its header says about its length is not always true.

    Raises:
        CorruptFileError: it cannot be decoded.
    """
    num_frames, first = 0, None
    with _opened(path) as (container, stream):
        fps = float(stream.average_rate or stream.guessed_rate or 1)
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise CorruptFileError(f"{path} is damaged at frame {num_frames + 1}; give another file")
            shown = (frame.width, frame.height) if abs(frame.rotation) == 90 else (frame.height, frame.width)
            first = first or shown
            if shown != first:
                raise CorruptFileError(f"{path} has frames of several sizes; give a video of one size")
            num_frames += 1
    if first is None:
        raise CorruptFileError(f"{path} has no frame that can be decoded; give another file")
    return VideoFile(path, num_frames, *first, fps)


def cut_videos(videos: Sequence[VideoFile], windows: Windows) -> Iterator[SourceClip]:
    """The clips of videos one after the other, each with the caption in the text file beside its video.

    Whole frames must be of one size; with tiles, only whole tiles are used.
    """
    first: tuple[int, ...] | None = None
    for number, video in enumerate(videos):
        starts = windows.starts(video.num_frames)
        if not starts:
            logger.warning("left out: %s has %d frames; too few for a clip", video.path, video.num_frames)
        caption, stem = caption_beside(video.path), "".join(c if c.isalnum() else "_" for c in video.path.stem)
        for start, pixels in _runs(video, windows, starts):
            for place, clip in _tiles(pixels, windows):
                if clip.shape != (first := first or clip.shape):
                    raise ConfigError(
                        f"{video.path} gives clips of {clip.shape[3]}x{clip.shape[2]} pixels and the first video of "
                        f"{first[3]}x{first[2]}; cut tiles of one size with --tile"
                    )
                yield SourceClip(f"{number:04d}-{stem}-{start:06d}{place}", clip, caption, starts[start])


def block_size(given: int, wanted: int | None) -> int:
    """Side of the blocks that bring a height nearest to the wanted one."""
    return 1 if wanted is None else max(1, round(given / wanted))


def average_blocks(frames: Tensor, block: int) -> Float[Tensor, "*B 3 H W"]:
    """Bytes of frames [..., 3, rows, columns] as RGB from -1 to 1, averaged over whole blocks."""
    pixels = pixels_from_bytes(frames)
    return pixels if block == 1 else avg_pool2d(pixels, block)


def caption_beside(path: Path) -> str:
    """The text of the file of the same name with .txt; empty where there is none.

    Raises:
        FileError: it is not UTF-8 text.
    """
    file = path.with_suffix(".txt")
    if not file.is_file():
        return ""
    try:
        return " ".join(file.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise FileError(f"{file} is not UTF-8 text (byte {error.start}); write it again") from error


def _runs(video: VideoFile, windows: Windows, starts: dict[int, str]) -> Iterator[tuple[int, Float[Tensor, "3 T H W"]]]:
    """First frame and frames of every clip; no more frames are held than a clip has."""
    if not starts:
        return
    latest: deque[Tensor] = deque(maxlen=windows.num_frames)
    last = max(starts) + windows.num_frames
    for number, frame in enumerate(islice(video.frames(windows.height), last)):
        latest.append(frame)
        start = number + 1 - windows.num_frames
        if start in starts:
            yield start, torch.stack(list(latest), dim=1)


def _tiles(pixels: Float[Tensor, "3 T H W"], windows: Windows) -> Iterator[tuple[str, Float[Tensor, "3 T h w"]]]:
    """Name and content of the tiles of a clip, in the middle of its frames; without tiles, of the whole."""
    rows, columns = pixels.shape[2:]
    side = windows.tile or windows.multiple
    top, left = rows % side // 2, columns % side // 2
    if rows < side or columns < side:
        raise ConfigError(
            f"frames of {columns}x{rows} pixels are smaller than {side}x{side}; raise --height or lower --tile"
        )
    if windows.tile is None:
        yield "", pixels[:, :, top : top + rows // side * side, left : left + columns // side * side]
        return
    for row in range(rows // side):
        for column in range(columns // side):
            y, x = top + row * side, left + column * side
            yield f"-{row}-{column}", pixels[:, :, y : y + side, x : x + side]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    try:
        with av.open(str(path.resolve()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video or container.streams.video[0].codec_context is None:
                raise CorruptFileError(f"{path} has no pictures that can be decoded; give another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream
    except (FFmpegError, OSError, ValueError, OverflowError) as error:
        raise CorruptFileError(f"{path} cannot be decoded ({type(error).__name__}); give another file") from error


def _upright(frame: av.VideoFrame) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
