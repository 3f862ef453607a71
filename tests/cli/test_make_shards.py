"""`latentloom drift make-shards`: the world and videos as shards, and mistakes of one line."""

import json

import numpy as np
import pytest
import torch

from latentloom.cli.main import run
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.shard_stream import stream_shards
from latentloom.micro.draw import draw_captioned
from latentloom.micro.read import read_clips
from latentloom.storage import write_video
from latentloom.tensors import VideoLatents
from latentloom.wan import checkpoints
from latentloom.wan.checkpoint_fingerprints import fingerprint_text_encoder, fingerprint_vae
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import decode_video

CPU = torch.device("cpu")


def make(*arguments) -> int:
    models = [] if {"pixel", "--no-text"} <= set(arguments) else ["--device", "cpu"]
    return run(["drift", "make-shards", *models, *map(str, arguments)])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Shards of the world, and what the command measured."""
    folder = tmp_path_factory.mktemp("world")
    arguments = ["--world", 5, "--num-frames", 9, "--clips-per-shard", 2, "--seed", 3]
    assert make(*arguments, "--out", folder / "s", "--json", folder / "made.json") == 0
    return folder / "s", json.loads((folder / "made.json").read_text())


def test_the_world_becomes_shards_with_a_manifest(world):
    folder, made = world
    index, root = ShardIndex.open(folder), micro_wan_weights()
    assert index.shape == (16, 9, 6, 6)
    assert index.manifest is not None
    assert (index.manifest.space, index.manifest.frames, index.manifest.num_clips) == ("latent", "each", 5)
    assert index.manifest.vae == fingerprint_vae(root)
    assert index.manifest.text_encoder == fingerprint_text_encoder(root)
    assert len(list(folder.glob("*.tar"))) == 3
    assert made["clips"] == {str(folder): 5}
    assert not index.skipped


def test_captions_and_clips_are_those_of_the_world(world):
    index = ShardIndex.open(world[0])
    drawn = list(draw_captioned(5, num_frames=9, seed=3))
    assert index.prompts(range(5)) == [clip.caption for clip in drawn]
    latents = index.load(range(5))  # every frame on its own: decoded as images
    vae = checkpoints.load_vae(micro_wan_weights(), torch.float32, CPU)
    images = VideoLatents(latents.transpose(1, 2).flatten(0, 1).unsqueeze(2))
    frames = decode_video(vae, images, CPU).squeeze(1).unflatten(0, (5, 9))
    readings = read_clips(frames.permute(0, 4, 1, 2, 3).float() / 255)
    assert [reading.attributes for reading in readings] == [clip.attributes for clip in drawn]


def test_texts_are_what_the_encoder_says(world):
    index, root = ShardIndex.open(world[0]), micro_wan_weights()
    encoder = WanTextEncoder(checkpoints.load_text_encoder(root, torch.float32, CPU), checkpoints.load_tokenizer(root))
    expected = encoder.encode(index.prompts(range(5)))
    found = index.load_text(range(5))
    assert torch.equal(found.lengths, expected.lengths)
    assert torch.allclose(found.tokens, expected.tokens, atol=2e-3, rtol=2e-3)  # float16 is what is stored


def test_the_toy_set_is_the_world_in_few_pixels(tmp_path):
    arguments = ["--world", 3, "--space", "pixel", "--height", 16, "--no-text", "--split", "held_out"]
    assert make(*arguments, "--out", tmp_path / "s") == 0
    index = ShardIndex.open(tmp_path / "s")
    assert index.shape == (3, 17, 16, 16)
    assert index.text_width is None
    drawn = next(draw_captioned(3, num_frames=17, split_name="held_out"))
    blocks = drawn.frames.float().view(17, 16, 3, 16, 3, 3).mean(dim=(2, 4)).permute(3, 0, 1, 2) / 127.5 - 1
    assert torch.allclose(index.load([0])[0], blocks, atol=1e-3)
    assert index.prompts([0]) == [drawn.caption]


def test_videos_become_train_and_held_out(tmp_path, caplog):
    (tmp_path / "v").mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (30, 32, 48, 3), dtype=np.uint8)
    write_video(tmp_path / "v" / "noise.mp4", frames, 10)
    (tmp_path / "v" / "noise.txt").write_text("Noise.\n")
    (tmp_path / "v" / "broken.mp4").write_bytes(b"no video")
    options = ["--num-frames", 5, "--tile", 16, "--hop", 5, "--held-out-share", 0.4, "--frames", "clip"]
    assert make("--videos", tmp_path / "v", *options, "--out", tmp_path / "s") == 0
    train, held_out = (list(stream_shards(tmp_path / "s" / part)) for part in ("train", "held_out"))
    assert (len(train), len(held_out)) == (3 * 6, 2 * 6)
    assert train[0].values.shape == (16, 2, 2, 2)
    assert {clip.prompt for clip in train + held_out} == {"Noise."}
    starts = [{int(clip.key.split("-")[2]) for clip in part} for part in (train, held_out)]
    assert starts == [{0, 5, 10}, {18, 23}]
    assert "broken.mp4" in caplog.text


def test_videos_of_different_rates_are_named(tmp_path, caplog):
    (tmp_path / "v").mkdir()
    for name, rate in (("slow", 10), ("fast", 30)):
        write_video(tmp_path / "v" / f"{name}.mp4", np.zeros((6, 16, 16, 3), dtype=np.uint8), rate)
    options = ["--num-frames", 5, "--space", "pixel", "--no-text"]
    assert make("--videos", tmp_path / "v", *options, "--out", tmp_path / "s") == 0
    assert "10 (slow.mp4), 30 (fast.mp4)" in caplog.text
    caplog.clear()
    (tmp_path / "v" / "slow.mp4").unlink()
    assert make("--videos", tmp_path / "v", *options, "--out", tmp_path / "t") == 0
    assert "frames per second" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either --videos FOLDER or --world N"),
        (["--world", "2", "--videos", "v"], "give either"),
        (["--world", "2", "--tile", "8"], "--tile has no effect with --world"),
        (["--world", "2", "--space", "pixel", "--frames", "each"], "--frames has no effect with --space pixel"),
        (["--videos", "v", "--split", "train"], "--split has no effect with --videos"),
        (["--videos", "v", "--seed", "1"], "--seed has no effect with --videos"),
        (
            ["--world", "2", "--space", "pixel", "--no-text", "--device", "cpu"],
            "--device has no effect with --space pixel --no-text",
        ),
        (
            ["--world", "2", "--space", "pixel", "--no-text", "--ckpt-root", "nowhere"],
            "--ckpt-root has no effect with --space pixel --no-text",
        ),
        (["--world", "2", "--num-frames", "12", "--no-text"], "no clips of 12 frames"),
        (["--world", "2", "--frame-size", "50", "--no-text"], "multiples of 8"),
        (["--videos", "nowhere", "--no-text"], "nowhere is no folder"),
        (["--videos", "empty", "--no-text"], "holds no videos"),
        (["--videos", "broken", "--no-text"], "none of the 1 videos"),
        (["--videos", "v", "--no-text", "--held-out-share", "1.5"], "held_out_share = 1.5"),
        (["--videos", "v", "--no-text", "--num-frames", "8", "--frames", "clip"], "use 5 or 9"),
        (["--videos", "v", "--no-text", "--num-frames", "99"], "too short"),
        (["--videos", "v", "--no-text", "--tile", "12"], "no multiple of 8"),
        (["--world", "2", "--no-text", "--ckpt-root", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    for name in ("v", "empty", "broken"):
        (tmp_path / name).mkdir()
    write_video(tmp_path / "v" / "a.mp4", np.zeros((9, 16, 16, 3), dtype=np.uint8), 10)
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video")
    assert make(*arguments, "--out", "s") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error") or said in line]
    assert len(lines) == 1
    assert said in lines[0]
    assert not (tmp_path / "s").exists() or not any((tmp_path / "s").rglob("*.tar"))


def test_a_folder_that_is_not_empty_is_refused(tmp_path, capsys):
    (tmp_path / "note.txt").touch()
    assert make("--world", 2, "--out", tmp_path) == 2
    assert "is not empty" in capsys.readouterr().err
