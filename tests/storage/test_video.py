import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.storage import encode_mp4, read_video, write_contact_sheet, write_video

COLOURS = [(255, 0, 0), (0, 160, 60), (40, 60, 255), (255, 220, 0), (0, 0, 0), (255, 255, 255)]


def moving_square(num_frames: int = 9, height: int = 48, width: int = 48) -> np.ndarray:
    frames = np.full((num_frames, height, width, 3), 30, np.uint8)
    for number in range(num_frames):
        frames[number, 8:24, 2 + 2 * number : 18 + 2 * number] = COLOURS[number % len(COLOURS)]
    return frames


def test_mp4_plays_in_browsers_and_keeps_the_picture(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "a.mp4", torch.from_numpy(frames), 8)
    loaded, fps = read_video(tmp_path / "a.mp4")
    assert loaded.shape == frames.shape
    assert fps == 8
    assert np.abs(loaded.astype(int) - frames).mean() < 2
    assert np.abs(loaded[:, 10:22, 20:16:-1].astype(int) - frames[:, 10:22, 20:16:-1]).max() < 60
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_an_encoded_clip_is_a_file_and_more_loss_makes_it_smaller(tmp_path):
    frames = moving_square(height=33)
    (tmp_path / "a.mp4").write_bytes(encode_mp4(torch.from_numpy(frames), 12.5))
    loaded, fps = read_video(tmp_path / "a.mp4")
    assert loaded.shape == (9, 34, 48, 3)
    assert fps == 12.5
    assert np.abs(loaded[:, :33].astype(int) - frames).mean() < 2
    assert len(encode_mp4(frames, 12.5, crf=40)) < len(encode_mp4(frames, 12.5))
    with pytest.raises(ShapeError, match="at least one frame"):
        encode_mp4(frames[:0], 12.5)


def test_gif_keeps_colours_and_still_frames(tmp_path):
    frames = moving_square()
    frames[5] = frames[4]
    write_video(tmp_path / "a.gif", frames, 8)
    loaded, fps = read_video(tmp_path / "a.gif")
    assert np.array_equal(loaded, frames)
    assert fps == pytest.approx(8, rel=0.05)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.floats(0.5, 60))
def test_a_png_strip_is_lossless_and_remembers_its_frames(tmp_path_factory, num_frames, height, width, fps):
    frames = np.random.default_rng(num_frames).integers(0, 256, (num_frames, height, width, 3), np.uint8)
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_video(path, frames, fps)
    loaded, loaded_fps = read_video(path)
    assert np.array_equal(loaded, frames)
    assert loaded_fps == fps


def test_an_odd_size_is_made_even_by_repeating_the_edge(tmp_path):
    frames = moving_square(height=33, width=47)
    write_video(tmp_path / "odd.mp4", frames, 8)
    loaded, _ = read_video(tmp_path / "odd.mp4")
    assert loaded.shape == (9, 34, 48, 3)
    assert np.abs(loaded[:, :33, :47].astype(int) - frames).mean() < 2


def test_a_still_clip_keeps_all_its_frames(tmp_path):
    frames = np.repeat(moving_square(1), 9, axis=0)
    for suffix in ("mp4", "gif", "png"):
        write_video(tmp_path / f"still.{suffix}", frames, 8)
        assert len(read_video(tmp_path / f"still.{suffix}")[0]) == 9


def test_a_clip_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(FileError, match=r"one of \.mp4, \.gif, \.png"):
        write_video(tmp_path / "a.avi", moving_square(), 8)
    with pytest.raises(ShapeError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", moving_square(0), 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", ["mp4", "gif", "png"])
def test_a_damaged_clip_is_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_video(path, moving_square(), 8)
    content = path.read_bytes()
    for damaged in (b"", b"no clip", content[:20]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptFileError) as error:
            read_video(path)
        assert "\n" not in str(error.value)


def test_a_clip_that_decodes_to_too_much_is_refused(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(), 8)
    with pytest.raises(FileError, match="cut it"):
        read_video(tmp_path / "a.mp4", max_bytes=48 * 48 * 3 * 4)


def test_a_playlist_is_not_followed(tmp_path):
    write_video(tmp_path / "secret.mp4", moving_square(), 8)
    (tmp_path / "list.mp4").write_text(f"ffconcat version 1.0\nfile '{tmp_path / 'secret.mp4'}'\n")
    with pytest.raises(CorruptFileError):
        read_video(tmp_path / "list.mp4")


def test_a_contact_sheet_shows_every_clip_under_its_caption(tmp_path):
    clips = [moving_square(9), moving_square(5, 64, 64)]
    captions = ["A red square.", "a caption long enough to be wrapped " * 8 + "größer → 図"]
    write_contact_sheet(tmp_path / "sheet.png", clips, captions)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape[1] == 9 * 100 - 4 + 32
    assert (pixels == clips[0][0, 10, 10]).all(axis=-1).sum() > 1000
    with pytest.raises(ShapeError, match="2 clips and 1 captions"):
        write_contact_sheet(tmp_path / "sheet.png", clips, captions[:1])


def test_a_clip_cut_anywhere_is_read_or_refused_in_one_line(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mp4", frames, 8)
    whole = (tmp_path / "whole.mp4").read_bytes()
    refusals = []
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.mp4").write_bytes(whole[:length])
        try:
            read_video(tmp_path / "cut.mp4")
        except FileError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert not any("\n" in refusal for refusal in refusals)


def test_a_clip_is_encoded_in_the_same_bytes_every_time():
    generator = np.random.default_rng(0)
    y, x = np.mgrid[:48, :48] + 0.5
    varying = 0
    for _ in range(60):
        ground, colour = generator.uniform(0, 1, (2, 3))
        radius, (middle, start) = generator.uniform(6, 12), generator.uniform(18, 28, 2)
        distance = [np.hypot(x - start - 1.5 * moment + 6, y - middle) - radius for moment in range(9)]
        cover = np.clip(0.5 - np.stack(distance), 0, 1)[..., None]
        frames = np.round(255 * (ground + (colour - ground) * cover)).astype(np.uint8)
        encoded = set()
        for _ in range(4):
            _used = generator.bytes(int(generator.integers(1_000, 400_000)))  # memory that is freed is not blank
            encoded.add(encode_mp4(frames, 8))
        varying += len(encoded) > 1
    assert varying == 0
