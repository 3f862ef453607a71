"""Pictures and clips as data URIs, the only kind of source a page without a network can have."""

import io
from base64 import b64encode
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from PIL import Image
from torch import Tensor

from latentloom.errors import FileError, ShapeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIP_PIXELS = 192  # shorter sides below this are enlarged by whole factors: 48 becomes 4 x 48
PICTURES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
BT709, LIMITED_RANGE = 1, 1  # ffmpeg's numbers for the matrix and range that browsers assume


def svg(figure: "Figure") -> str:
    """A matplotlib figure, its text as outlines so that it looks the same everywhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    return _data_uri("image/svg+xml", buffer.getvalue())


def png(pixels: np.ndarray) -> str:
    """Pixels [H, W, 3], enlarged by a whole factor when small."""
    buffer = io.BytesIO()
    Image.fromarray(_enlarged(pixels[None])[0]).save(buffer, "PNG", optimize=True)
    return _data_uri("image/png", buffer.getvalue())


def picture(path: Path) -> str:
    """A picture file as it is.

    Raises:
        FileError: missing, or not a picture that browsers show.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=list(PICTURES)) as image:
            image.verify()
            kind = PICTURES[str(image.format)]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"{path} is not a picture; give one of {', '.join(PICTURES)}") from error
    return _data_uri(kind, content)


def mp4(frames: np.ndarray | Tensor, fps: float) -> tuple[str, int, int]:
    """A clip [T, H, W, 3] as H.264 that browsers play, with its width and height; enlarged when small.

    Raises:
        ShapeError: no frames.
    """
    frames = frames.cpu().numpy() if isinstance(frames, Tensor) else frames
    if 0 in frames.shape or fps <= 0:
        raise ShapeError(f"a clip of shape {frames.shape} at {fps} fps; give at least one frame and a positive rate")
    frames = _enlarged(frames)
    # 4:2:0 halves the colour planes, so both sides must be even
    frames = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(
                stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"))
            )
        container.mux(stream.encode())
    return _data_uri("video/mp4", buffer.getvalue()), frames.shape[2], frames.shape[1]


def _enlarged(frames: np.ndarray) -> np.ndarray:
    factor = max(1, CLIP_PIXELS // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
