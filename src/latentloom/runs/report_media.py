"""Pictures and clips as data URIs, the only kind of source a page without a network can have."""

import io
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from latentloom.errors import FileError
from latentloom.storage import encode_mp4

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIP_PIXELS = 192  # shorter sides below this are enlarged by whole factors: 48 becomes 4 x 48
CLIP_CRF = 18  # a page carries many clips, so they are a little smaller than files of their own
PICTURES = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}


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
    frames = _enlarged(frames.cpu().numpy() if isinstance(frames, Tensor) else frames)
    content = encode_mp4(frames, fps, crf=CLIP_CRF)
    height, width = (side + side % 2 for side in frames.shape[1:3])  # the format has even sides only
    return _data_uri("video/mp4", content), width, height


def _enlarged(frames: np.ndarray) -> np.ndarray:
    if 0 in frames.shape:
        return frames  # what encodes it refuses it, and states the shape that was given
    factor = max(1, CLIP_PIXELS // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{b64encode(content).decode('ascii')}"
