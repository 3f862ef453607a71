import base64
import io
import re
from html.parser import HTMLParser

import av
import numpy as np
import pytest
import torch
from av.container import InputContainer
from matplotlib.figure import Figure
from PIL import Image

from latentloom.errors import FileError, ShapeError
from latentloom.runs import Report

HOSTILE = "<script>alert('1')</script> & \"größe\" 図"


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def written(report: Report, tmp_path) -> Page:
    report.write(tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text("utf-8"))


def clip(size: int = 48) -> np.ndarray:
    frames = np.full((9, size, size, 3), 20, np.uint8)
    frames[:, 10:30, 10:30] = (220, 40, 40)
    return frames


def decoded(uri: str | None, kind: str) -> bytes:
    assert uri is not None
    head, _, content = uri.partition(",")
    assert head == f"data:{kind};base64"
    return base64.b64decode(content, validate=True)


def full_report() -> Report:
    report = Report(HOSTILE)
    report.heading(HOSTILE)
    report.paragraph(HOSTILE)
    report.table([HOSTILE, "n"], [[HOSTILE, 3]])
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    report.figure(figure, HOSTILE)
    report.image(clip()[0], HOSTILE)
    report.video(torch.from_numpy(clip()), 8, HOSTILE)
    report.clips([(HOSTILE, clip(64), 8), ("other size", clip(33), 12.5)])
    return report


def test_text_is_shown_and_never_run(tmp_path):
    page = written(full_report(), tmp_path)
    assert page.all("script") == []
    assert page.text.count(HOSTILE) == 10  # title twice, heading, paragraph, two cells, four captions
    assert page.all("img")[0]["alt"] == HOSTILE
    assert page.all("video")[0]["aria-label"] == HOSTILE


def test_the_page_is_whole_and_asks_for_nothing_else(tmp_path):
    page = written(full_report(), tmp_path)
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert len(sources) == 5
    assert all(source and source.startswith(("data:", "#")) for source in sources)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|url\(|@import", html)
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_clips_are_browser_video_enlarged_by_a_whole_factor(tmp_path):
    videos = written(full_report(), tmp_path).all("video")
    sizes = []
    for video in videos:
        assert {"autoplay", "loop", "muted", "playsinline"} <= video.keys()
        with av.open(io.BytesIO(decoded(video["src"], "video/mp4"))) as container:
            assert isinstance(container, InputContainer)
            context = container.streams.video[0].codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 9
        sizes.append(frames[0].shape[:2])
        assert (video["height"], video["width"]) == tuple(str(side) for side in sizes[-1])
    assert sizes == [(192, 192), (192, 192), (166, 166)]


def test_pictures_are_inline_and_enlarged_without_blurring(tmp_path):
    pictures = written(full_report(), tmp_path).all("img")
    assert b"<svg" in decoded(pictures[0]["src"], "image/svg+xml")
    pixels = np.asarray(Image.open(io.BytesIO(decoded(pictures[1]["src"], "image/png"))))
    assert np.array_equal(pixels, clip()[0].repeat(4, axis=0).repeat(4, axis=1))


def test_picture_files_are_embedded_as_they_are(tmp_path):
    Image.fromarray(clip()[0]).save(tmp_path / "a.png")
    report = Report("r")
    report.image(tmp_path / "a.png", "a file")
    image = written(report, tmp_path).all("img")[0]
    assert decoded(image["src"], "image/png") == (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_text("<svg onload=alert(1)>")
    for path in (tmp_path / "b.png", tmp_path / "none.png", tmp_path):
        with pytest.raises(FileError, match="not a picture"):
            report.image(path, "x")


def test_columns_of_numbers_are_aligned_and_rounded(tmp_path):
    report = Report("r")
    rows = [["a", 400, 0.123456, "97.5 % [95.4, 98.7]", None], ["b", 7, float("nan"), "9 %", 1e-9]]
    report.table(["name", "n", "loss", "accuracy", "small"], rows)
    page = written(report, tmp_path)
    assert [cell.get("class") for cell in page.all("th")] == [None, *["number"] * 4]
    for text in ("0.1235", "nan", "\u2013", "1e-09", "400"):
        assert text in page.text
    with pytest.raises(ShapeError, match="1 cells in a table of 2 columns"):
        report.table(["a", "b"], [["only"]])


def test_several_headings_get_a_list_of_contents(tmp_path):
    report = Report("r")
    for number in range(4):
        report.heading(f"part {number}")
    page = written(report, tmp_path)
    assert [link["href"] for link in page.all("a")] == [f"#{heading['id']}" for heading in page.all("h2")]


def test_a_clip_without_frames_is_refused():
    with pytest.raises(ShapeError, match="at least one frame"):
        Report("r").video(clip()[:0], 8, "nothing")
