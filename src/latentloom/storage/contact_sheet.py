"""Clips as one still picture, for a page that cannot play them."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentloom.errors import FileError, ShapeError
from latentloom.storage.atomic import atomic_write

FRAME_PIXELS = 96  # small frames are enlarged by a whole factor to at least this height
GAP, MARGIN, FONT_SIZE = 4, 16, 15
PAPER, INK = (255, 255, 255), (34, 38, 46)


def write_contact_sheet(
    path: Path | str,
    clips: Sequence[UInt8[np.ndarray, "_ _ _ 3"] | UInt8[Tensor, "_ _ _ 3"]],
    captions: Sequence[str],
) -> None:
    """Write a PNG with one strip of frames per clip under its caption.

    Args:
        path: ends in .png.
        clips: each [T, H, W, 3]; lengths and sizes may differ.
        captions: one per clip; a long one is wrapped.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
        ShapeError: no clips, an empty clip, or not one caption per clip.
    """
    if Path(path).suffix.lower() != ".png":
        raise FileError(f"{path} does not end in .png; a contact sheet is a PNG")
    arrays = [clip.cpu().numpy() if isinstance(clip, Tensor) else clip for clip in clips]
    if not arrays or len(arrays) != len(captions) or any(0 in clip.shape for clip in arrays):
        raise ShapeError(f"{len(arrays)} clips and {len(captions)} captions; give clips with frames and a caption each")
    strips = [_strip(clip) for clip in arrays]
    width = max(strip.width for strip in strips) + 2 * MARGIN
    font = _font()
    texts = [_wrapped(caption, font, width - 2 * MARGIN) for caption in captions]
    line = FONT_SIZE + 5
    heights = [len(text) * line + GAP + strip.height + MARGIN for text, strip in zip(texts, strips, strict=True)]
    sheet = Image.new("RGB", (width, MARGIN + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    top = MARGIN
    for text, strip, height in zip(texts, strips, heights, strict=True):
        for number, words in enumerate(text):
            pen.text((MARGIN, top + number * line), words, INK, font)
        sheet.paste(strip, (MARGIN, top + len(text) * line + GAP))
        top += height
    with atomic_write(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _strip(clip: np.ndarray) -> Image.Image:
    num_frames, height, width, _ = clip.shape
    scale = -(-FRAME_PIXELS // height)
    large = clip.repeat(scale, axis=1).repeat(scale, axis=2)
    strip = Image.new("RGB", (num_frames * (width * scale + GAP) - GAP, height * scale), PAPER)
    for number, frame in enumerate(large):
        strip.paste(Image.fromarray(frame), (number * (width * scale + GAP), 0))
    return strip


def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font knows little beyond Latin; matplotlib always brings this one
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
