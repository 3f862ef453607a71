"""Files to frames: the middle of the picture, upright, at the model's rate; damaged files are told by name."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from latentloom.errors import CorruptFileError
from latentloom.finetune.media import is_media, look_at, read_frames
from latentloom.storage import read_video, write_video
from latentloom.wan.clip_size import ClipSize

GREY = 10  # the n-th frame's level is GREY * n


def write_levels(
    path: Path, times: list[Fraction], size: tuple[int, int] = (64, 48), rotation: int = 0, unit: int = 1200
) -> None:
    """A video whose frame n is shown at times[n], in steps of 1/unit s, at grey level GREY * n; its right is white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=60, options={"crf": "0"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, unit)
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            pixels = np.full((size[1], size[0], 3), GREY * number, np.uint8)
            pixels[:, -8:] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = int(time * unit), Fraction(1, unit)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def levels(path: Path, num_frames: int, fps: float) -> list[int]:
    frames = read_frames(path, ClipSize(num_frames, 48, 64), fps)
    return [round(float(frame[10:20, 10:20].float().mean()) / GREY) for frame in frames]


def evenly(num: int, fps: int) -> list[Fraction]:
    return [Fraction(number, fps) for number in range(num)]


def test_a_faster_video_is_thinned_to_the_models_rate(tmp_path: Path):
    path = tmp_path / "fast.mp4"
    write_levels(path, evenly(25, 24))
    assert look_at(path, 8).num_frames == 9
    assert levels(path, 9, 8) == [0, 3, 6, 9, 12, 15, 18, 21, 24]


def test_rates_that_do_not_divide_keep_every_frame_within_a_frame_of_its_time(tmp_path: Path):
    path = tmp_path / "odd.mp4"
    write_levels(path, evenly(25, 20))
    times = [level / 20 for level in levels(path, look_at(path, 16).num_frames, 16)]
    assert len(times) == pytest.approx(25 * 16 / 20, abs=1)
    assert all(abs(time - number / 16) <= 1 / 16 for number, time in enumerate(times))


@pytest.mark.parametrize("fps", [8, 16, 24])
def test_a_slower_video_keeps_its_frames(tmp_path: Path, fps: int):
    path = tmp_path / "slow.mp4"
    write_levels(path, evenly(9, 8))
    assert look_at(path, fps).num_frames == 9
    assert levels(path, 9, fps) == list(range(9))


def test_times_rounded_to_milliseconds_lose_no_frame(tmp_path: Path):
    path = tmp_path / "rounded.mkv"  # Matroska counts in milliseconds
    write_levels(path, evenly(17, 24))
    assert look_at(path, 24).num_frames == 17


def test_a_gap_is_not_made_up_for_by_the_frames_after_it(tmp_path: Path):
    path = tmp_path / "gap.mp4"
    write_levels(path, [Fraction(0), *(2 + time for time in evenly(16, 32))])
    assert look_at(path, 8).num_frames == 5


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_the_frames_that_are_counted_can_be_read(tmp_path: Path, suffix: str):
    path = tmp_path / f"clip{suffix}"
    write_levels(path, evenly(13, 60), unit=60)
    counted = look_at(path, 60).num_frames
    assert counted == 13
    assert levels(path, counted, 60) == list(range(13))


def test_a_clip_of_the_right_size_and_rate_is_decoded_as_it_is(tmp_path: Path):
    path = tmp_path / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
    write_video(path, frames, 8)
    assert np.array_equal(read_frames(path, ClipSize(9, 48, 48), 8).numpy(), read_video(path)[0])


def test_the_middle_is_cut_out_after_scaling_to_cover(tmp_path: Path):
    path = tmp_path / "wide.png"
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:80, 1] = pixels[:, 80:, 2] = 255
    Image.fromarray(pixels).save(path)
    square = read_frames(path, ClipSize(1, 20, 20), 8)[0].float()
    assert square[:, 2:-2].mean(dim=(0, 1)).tolist() == pytest.approx([0, 255, 0], abs=1)
    whole = read_frames(path, ClipSize(1, 20, 60), 8)[0]
    assert whole[10, [5, 30, 55]].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path):
    path = tmp_path / "turned.jpg"
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 32:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(pixels).save(path, exif=exif)
    facts = look_at(path, 8)
    assert (facts.width, facts.height, facts.num_frames) == (32, 64, 1)
    shown = read_frames(path, ClipSize(1, 64, 32), 8)[0].float().mean(dim=(1, 2))
    assert shown[:28].max() < 20
    assert shown[36:].min() > 235


def test_a_video_is_turned_as_its_matrix_says(tmp_path: Path):
    path = tmp_path / "turned.mp4"
    write_levels(path, evenly(5, 8), rotation=90)
    with av.open(str(path)) as container:
        rotation = next(container.decode(video=0)).rotation
    assert abs(rotation) == 90
    facts = look_at(path, 8)
    assert (facts.width, facts.height) == (48, 64)
    first = read_frames(path, ClipSize(1, 64, 48), 8)[0].float().mean(dim=(1, 2))
    # turning counter-clockwise brings the white right end to the top
    white, black = (first[:6], first[-6:]) if rotation == 90 else (first[-6:], first[:6])
    assert white.min() > 235
    assert black.max() < 20


def test_what_is_transparent_becomes_white(tmp_path: Path):
    path = tmp_path / "clear.png"
    Image.new("RGBA", (32, 32), (200, 0, 0, 0)).save(path)
    assert read_frames(path, ClipSize(1, 16, 16), 8).unique().tolist() == [255]


def test_grey_and_palette_images_become_colours(tmp_path: Path):
    for name, image in {
        "grey.png": Image.new("L", (32, 32), 90),
        "palette.bmp": Image.new("RGB", (32, 32), (90, 90, 90)).convert("P", palette=Image.Palette.ADAPTIVE),
    }.items():
        image.save(tmp_path / name)
        assert read_frames(tmp_path / name, ClipSize(1, 16, 16), 8).unique().tolist() == [90]


def test_a_gif_is_a_video(tmp_path: Path):
    path = tmp_path / "clip.gif"
    write_video(path, np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8), 8)
    assert look_at(path, 8).num_frames == 5
    assert read_frames(path, ClipSize(5, 32, 32), 8).shape == (5, 32, 32, 3)


@pytest.mark.parametrize("name", ["empty.png", "empty.mp4", "text.jpg", "text.webm", "cut.mp4", "cut.png"])
def test_a_damaged_file_is_named_with_what_is_wrong(tmp_path: Path, name: str):
    path = tmp_path / name
    if name.startswith("cut"):
        frames = np.random.default_rng(0).integers(0, 256, (9, 48, 48, 3), dtype=np.uint8)
        write_video(path, frames, 8)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.write_bytes(b"" if name.startswith("empty") else b"no picture" * 100)
    num_frames = 9 if path.suffix in (".mp4", ".webm") else 1
    with pytest.raises(CorruptFileError, match=name) as raised:
        read_frames(path, ClipSize(num_frames, 48, 48), 8)
    assert "\n" not in str(raised.value)


def test_fewer_frames_than_are_asked_for_are_an_error(tmp_path: Path):
    path = tmp_path / "short.mp4"
    write_levels(path, evenly(5, 8))
    with pytest.raises(CorruptFileError, match="5 of the 9 frames"):
        read_frames(path, ClipSize(9, 48, 64), 8)


def test_media_are_known_by_their_suffix():
    names = ["a.PNG", "a.jpeg", "a.webp", "a.Mp4", "a.mkv", "a.avi", "a.txt", "a.npz", "a"]
    assert [is_media(Path(name)) for name in names] == [True] * 6 + [False] * 3
