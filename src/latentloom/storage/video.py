"""Clips as files: H.264 MP4 that browsers play, GIF, or one PNG with the frames side by side."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.filter import Graph
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.storage.atomic import atomic_write
from latentloom.storage.header import existing_file

Frames = UInt8[np.ndarray, "T H W 3"]
SUFFIXES = (".mp4", ".gif", ".png")
MAX_DECODED_BYTES = 4 * 2**30
CRF = 12  # x264's scale of loss: 0 is none; below 18 few people see any
PNG_FRAMES, PNG_FPS = "latentloom-frames", "latentloom-fps"
BT709, LIMITED_RANGE = 1, 1  # ffmpeg's numbers for the matrix and range that browsers assume


def write_video(path: Path | str, frames: UInt8[np.ndarray, "T H W 3"] | UInt8[Tensor, "T H W 3"], fps: float) -> None:
    """Write a clip in the format its suffix names.

    MP4 is near-lossless 4:2:0 (an odd size gains a repeated row or column); GIF has 256 colours and times frames in
    hundredths of a second; PNG is lossless and remembers the number of frames.

    Args:
        path: ends in .mp4, .gif or .png.
        frames: T frames of H by W RGB pixels.
        fps: frames per second.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
        ShapeError: no frames, or frames without pixels.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FileError(f"{path} ends in {suffix!r}; a clip is written as one of {', '.join(SUFFIXES)}")
    frames = _checked(frames, fps)
    with atomic_write(path) as temporary:
        if suffix == ".png":
            _write_grid(temporary, frames, fps)
        elif suffix == ".gif":
            _write_gif(temporary, frames, fps)
        else:
            _write_mp4(temporary, frames, fps)


def encode_mp4(frames: UInt8[np.ndarray, "T H W 3"] | UInt8[Tensor, "T H W 3"], fps: float, crf: int = CRF) -> bytes:
    """A clip as the content of an MP4 file that browsers play; an odd size gains a repeated row or column.

    Args:
        frames: T frames of H by W RGB pixels.
        fps: frames per second.
        crf: x264's scale of loss, 0 (none) to 51.

    Raises:
        ShapeError: no frames, or frames without pixels.
    """
    frames = _checked(frames, fps)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        _encode_h264(container, frames, fps, crf)
    return buffer.getvalue()


def read_video(path: Path | str, max_bytes: int = MAX_DECODED_BYTES) -> tuple[Frames, float]:
    """The frames [T, H, W, 3] of a clip and its frames per second; an image is a clip of one frame.

    Args:
        path: any video or image that ffmpeg reads.
        max_bytes: the most the frames may take together.

    Raises:
        FileError: no such file, or longer than max_bytes.
        CorruptFileError: damaged, or without pictures.
    """
    path = existing_file(path)
    if path.suffix.lower() == ".png":
        return _read_grid(path, max_bytes)
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path.resolve()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise CorruptFileError(f"{path} has no pictures; give a video")
            stream = container.streams.video[0]
            if stream.codec_context is None:  # the file was cut before it says how its pictures are coded
                raise CorruptFileError(f"{path} does not say how its pictures are coded; make or download it again")
            _refuse_large(path, stream.width * stream.height * 3, max_bytes)
            fps = float(stream.average_rate or 1)
            for frame in container.decode(stream):
                _refuse_large(path, (len(frames) + 1) * frame.width * frame.height * 3, max_bytes)
                frames.append(frame.to_ndarray(format="rgb24"))
    except (FFmpegError, ValueError) as error:
        raise CorruptFileError(f"{path} cannot be decoded ({type(error).__name__}); give another file") from error
    if len({frame.shape for frame in frames}) != 1:
        raise CorruptFileError(f"{path} has no frames, or frames of several sizes; give a video of one size")
    return np.stack(frames), fps


def _checked(frames: np.ndarray | Tensor, fps: float) -> np.ndarray:
    frames = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
    if 0 in frames.shape or fps <= 0:
        raise ShapeError(f"a clip of shape {frames.shape} at {fps} fps; give at least one frame and a positive rate")
    return frames


def _refuse_large(path: Path, num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise FileError(f"{path} decodes to more than {max_bytes} bytes; cut it or make it smaller")


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    # players on a network start before they have the whole file; ffmpeg can move the index only in a file with a name
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        _encode_h264(container, frames, fps, CRF)


def _encode_h264(container: OutputContainer, frames: np.ndarray, fps: float, crf: int) -> None:
    # 4:2:0 halves the colour planes, so both sides must be even
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    # where it looks ahead, x264 codes the same small clip in different bytes now and then: with B-frames up to 14
    # levels apart; without them still 8 of 9,000 clips, and none of 9,000 once all of this is off
    options = {"crf": str(crf), "preset": "medium", "bf": "0", "rc-lookahead": "0", "mbtree": "0", "weightp": "0"}
    stream = container.add_stream("libx264", rate=_rate(fps), options=options)
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.thread_count = 1
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED_RANGE
    for pixels in frames:
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=_rate(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "pal8"
        for frame in _in_256_colours(frames, fps):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _in_256_colours(frames: np.ndarray, fps: float) -> Iterator[av.VideoFrame]:
    tick = 1 / _rate(fps)
    graph = Graph()
    pixel_format = av.VideoFormat("rgb24", frames.shape[2], frames.shape[1])
    source = graph.add_buffer(width=frames.shape[2], height=frames.shape[1], format=pixel_format, time_base=tick)
    split, palette = graph.add("split"), graph.add("palettegen", "reserve_transparent=0")
    use, sink = graph.add("paletteuse"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(palette, 0, 0)
    split.link_to(use, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = number, tick
        graph.vpush(frame)
    graph.vpush(None)
    for _ in frames:
        yield graph.vpull()


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _write_grid(path: Path, frames: np.ndarray, fps: float) -> None:
    notes = PngInfo()
    notes.add_text(PNG_FRAMES, str(len(frames)))
    notes.add_text(PNG_FPS, repr(float(fps)))
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(path, "PNG", pnginfo=notes)


def _read_grid(path: Path, max_bytes: int) -> tuple[Frames, float]:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            _refuse_large(path, image.width * image.height * 3, max_bytes)
            pixels = np.asarray(image.convert("RGB"))
            num_frames, fps = int(image.info.get(PNG_FRAMES, 1)), float(image.info.get(PNG_FPS, 1))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptFileError(f"{path} cannot be decoded ({type(error).__name__}); give another file") from error
    if num_frames < 1 or pixels.shape[1] % num_frames:
        raise CorruptFileError(f"{path} claims {num_frames} frames in a row {pixels.shape[1]} pixels wide")
    return np.stack(np.split(pixels, num_frames, axis=1)), fps
