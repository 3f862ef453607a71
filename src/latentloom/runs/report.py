"""One HTML file that shows what a run came to: words, tables, figures and clips, without a network."""

import math
import re
from collections.abc import Sequence
from html import escape
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.runs import report_media
from latentloom.runs.report_page import page
from latentloom.storage import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# a number, with what people put around one: sign, separators, percent, an interval, a unit
NUMBER = re.compile(r"[-+\u2212±]?\d[\d.,]*(e[-+]?\d+)?\s?(%|s|ms|MB|GB|fps|/s)?(\s?[±\[(].*)?")
NOTHING = "\u2013"
HEADINGS_FOR_CONTENTS = 4


class Report:
    """A page that is filled from top to bottom and then written; all text is shown literally.

    Args:
        title: of the page.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._headings: list[str] = []
        self._parts: list[str] = []

    def heading(self, text: str) -> None:
        """Begin a section; a page with several gets a list of contents."""
        self._headings.append(text)
        self._parts.append(f'<h2 id="section-{len(self._headings)}">{escape(text)}</h2>')

    def paragraph(self, text: str) -> None:
        """Add text; a blank line in it begins a new paragraph."""
        for part in re.split(r"\n\s*\n", text.strip()):
            self._parts.append(f"<p>{escape(part)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table; columns of numbers are aligned right, floats show four digits, None a dash.

        Raises:
            ShapeError: a row of another length than the columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ShapeError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        texts = [[_cell(value) for value in row] for row in rows]
        kinds = [_column_class([row[number] for row in texts]) for number in range(len(columns))]
        head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(columns, kinds, strict=True))
        body = "\n".join(
            "<tr>" + "".join(f"<td{kind}>{escape(text)}</td>" for text, kind in zip(row, kinds, strict=True)) + "</tr>"
            for row in texts
        )
        self._parts.append(
            f'<div class="table"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
        )

    def figure(self, figure: "Figure", caption: str) -> None:
        """Add a matplotlib figure as SVG."""
        self._picture(report_media.svg(figure), caption, "plot")

    def image(self, image: Path | str | UInt8[np.ndarray, "H W 3"], caption: str) -> None:
        """Add a picture: a PNG, JPEG, GIF or WebP file, or pixels; a small one is enlarged without blurring.

        Raises:
            FileError: the file is missing or not such a picture.
        """
        if isinstance(image, np.ndarray):
            self._picture(report_media.png(image), caption, "pixels")
        else:
            self._picture(report_media.picture(Path(image)), caption, "picture")

    def video(self, frames: UInt8[np.ndarray, "T H W 3"] | UInt8[Tensor, "T H W 3"], fps: float, caption: str) -> None:
        """Add a clip that plays by itself, in a loop; a small one is enlarged without blurring."""
        self._parts.append(_clip(frames, fps, caption))

    def clips(
        self, clips: Sequence[tuple[str, UInt8[np.ndarray, "_ _ _ 3"] | UInt8[Tensor, "_ _ _ 3"], float]]
    ) -> None:
        """Add clips side by side, as many in a row as fit; each is (caption, frames [T, H, W, 3], fps)."""
        figures = "\n".join(_clip(frames, fps, caption) for caption, frames, fps in clips)
        self._parts.append(f'<div class="clips">{figures}</div>')

    def write(self, path: Path | str) -> None:
        """Write the page as one file that loads nothing else.

        Raises:
            FileError: the place cannot be written to.
        """
        contents = self._headings if len(self._headings) >= HEADINGS_FOR_CONTENTS else []
        write_text(path, page(self.title, contents, self._parts))

    def _picture(self, source: str, caption: str, kind: str) -> None:
        image = f'<img class="{kind}" src="{source}" alt="{escape(caption)}">'
        self._parts.append(f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>")


def _clip(frames: np.ndarray | Tensor, fps: float, caption: str) -> str:
    source, width, height = report_media.mp4(frames, fps)
    attributes = f'width="{width}" height="{height}" aria-label="{escape(caption)}"'
    video = f'<video autoplay loop muted playsinline {attributes} src="{source}"></video>'
    return f"<figure>{video}<figcaption>{escape(caption)}</figcaption></figure>"


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, Real) and not isinstance(value, bool | int | np.integer):
        return f"{float(value):.4g}" if math.isfinite(value) else str(float(value))
    return str(value)


def _column_class(texts: Sequence[str]) -> str:
    stated = [text.strip() for text in texts if text not in (NOTHING, "nan", "inf", "-inf")]
    return ' class="number"' if stated and all(NUMBER.fullmatch(text) for text in stated) else ""
