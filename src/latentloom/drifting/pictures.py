"""Samples as one picture: a row per method, a column per image."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from latentloom.drifting.images import bytes_from_pixels
from latentloom.errors import ShapeError

SAMPLE_PIXELS = 64  # small samples are enlarged by a whole factor to at least this
MISSING = 0.0  # grey, between black (-1) and white (1)
GAP, MARGIN, FONT_SIZE = 4, 12, 14
PAPER, INK = (255, 255, 255), (34, 38, 46)


def image_grid(
    rows: Sequence[Float[Tensor, "N _ H W"]], captions: Sequence[str], columns: Sequence[str] = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture of N samples per row, each row with its caption at the left.

    Args:
        rows: pixels from -1 to 1, one or three channels; sample i of every row belongs to one image.
        captions: one per row.
        columns: N headings, or none.

    Raises:
        ShapeError: no samples, or not one caption per row, or rows or headings of other lengths.
    """
    counts = {len(row) for row in rows}
    if not rows or len(captions) != len(rows) or len(counts) != 1 or 0 in counts:
        raise ShapeError(f"{len(rows)} rows of {sorted(counts)} samples and {len(captions)} captions; give one each")
    num = counts.pop()
    if columns and len(columns) != num:
        raise ShapeError(f"{len(columns)} headings for {num} columns; give one each, or none")
    strips = [_tiles(row) for row in rows]
    height, width = strips[0].shape[1:3]
    font = _font()
    left = MARGIN + max(int(font.getlength(caption)) for caption in captions) + MARGIN
    top = MARGIN + (FONT_SIZE + GAP if columns else 0)
    size = (left + num * (width + GAP) - GAP + MARGIN, top + len(rows) * (height + GAP) - GAP + MARGIN)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    for number, heading in enumerate(columns):
        words = _shortened(heading, font, width)
        pen.text((left + number * (width + GAP) + width / 2, MARGIN), words, INK, font, anchor="mt")
    for line, (caption, strip) in enumerate(zip(captions, strips, strict=True)):
        y = top + line * (height + GAP)
        pen.text((left - MARGIN, y + height / 2), caption, INK, font, anchor="rm")
        for number, tile in enumerate(strip):
            picture.paste(Image.fromarray(tile), (left + number * (width + GAP), y))
    return np.asarray(picture)


def given_patches(
    pixels: Float[Tensor, "N _ H W"], given: Bool[Tensor, "N P"], grid: tuple[int, int]
) -> Float[Tensor, "N _ H W"]:
    """The pixels of given patches; the others are grey.

    Args:
        pixels: from -1 to 1; for latents, what the VAE decodes to.
        given: row by row.
        grid: rows and columns of patches, P together.
    """
    shown = given.view(len(given), 1, *grid).to(pixels.device, torch.float32)
    shown = F.interpolate(shown, pixels.shape[2:], mode="nearest").bool()
    return pixels.masked_fill(~shown, MISSING)


def one_of_each_class(labels: Int64[Tensor, "N"], num: int) -> Int64[Tensor, "_"]:
    """Rows of up to `num` images: the first of every class, then the second, until there are enough."""
    labels = labels.cpu()
    turn = torch.zeros_like(labels)
    for number in labels.unique().tolist():
        rows = torch.nonzero(labels == number).flatten()
        turn[rows] = torch.arange(len(rows))
    # by turn, and by class within a turn
    return torch.argsort(turn * (int(labels.max()) + 1) + labels, stable=True)[:num]


def _tiles(samples: Tensor) -> np.ndarray:
    """Bytes [N, height, width, 3], enlarged."""
    tiles = bytes_from_pixels(samples.detach().cpu()).permute(0, 2, 3, 1).numpy()
    if tiles.shape[-1] == 1:
        tiles = tiles.repeat(3, axis=-1)
    scale = -(-SAMPLE_PIXELS // min(tiles.shape[1:3]))
    return tiles.repeat(scale, axis=1).repeat(scale, axis=2)


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _font() -> ImageFont.FreeTypeFont:
    # Pillow's own font knows little beyond Latin; matplotlib always brings this one
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", FONT_SIZE)
