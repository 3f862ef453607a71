"""`latentloom drift` on clips: training on shards, storyboards completed, and mistakes of one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blob_shards import TINY, blobs, write_blobs
from PIL import Image, ImageSequence
from shard_files import clip_values, write_folder

from latentloom.cli.main import run
from latentloom.drifting.clips.refiner_files import load_clip_refiner, save_clip_refiner
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.runs import to_toml
from latentloom.wan.checkpoint_fingerprints import fingerprint_text_encoder, fingerprint_vae
from latentloom.wan.shipped import micro_wan_weights

FAST = {**TINY, "num_levels": 2, "num_pseudo_classes": 2, "eval_levels": (1,), "steps": 2, "objective": "mse"}
REFINER = Path("seed0-mse") / "refiner.safetensors"


def drift(verb, *arguments) -> int:
    return run(["drift", verb, *map(str, arguments)])


def refused(capsys, verb, *arguments):
    """The one line that a command line is refused with."""
    capsys.readouterr()
    assert drift(verb, *arguments) == 2
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if "done in" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def settings_file(path: Path, root: Path, **changes) -> Path:
    path.write_text(to_toml({**FAST, "dataset": "shards", "data_root": str(root), **changes}))
    return path


def trained(folder: Path, root: Path, **changes) -> Path:
    """The file of a refiner that the command trained."""
    file = settings_file(folder / "clips.toml", root, **changes)
    assert drift("train", "--config", file, "--out-dir", folder / "run") == 0
    return folder / "run" / REFINER


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_blobs(tmp_path_factory.mktemp("blobs") / "shards", 16, texts=False)


@pytest.fixture(scope="module")
def of_pixels(shards, tmp_path_factory):
    """A refiner of clips of 9 frames of 8x8 pixels, without texts."""
    return trained(tmp_path_factory.mktemp("pixels"), shards)


def latents(folder: Path, frames: str, texts: bool) -> Path:
    """Shards of noise as MicroWan's latents: 5 frames of 4x4 cells."""
    root = micro_wan_weights()
    about = {"vae": fingerprint_vae(root), "text_encoder": fingerprint_text_encoder(root) if texts else None}
    with ShardWriter(folder, space="latent", frames="clip" if frames == "clip" else "each", **about) as writer:
        for number in range(12):
            text = torch.randn(2, 128, generator=torch.Generator().manual_seed(number)) if texts else None
            writer.write(f"clip{number}", clip_values(number), text, f"prompt {number}")
    return folder


@pytest.fixture(scope="module")
def of_frames(tmp_path_factory):
    """A refiner of latents of single frames, with prompts, for every checkpoint of MicroWan."""
    folder = tmp_path_factory.mktemp("frames")
    return trained(folder, latents(folder / "shards", "each", texts=True))


@pytest.fixture(scope="module")
def of_clips(tmp_path_factory):
    """A refiner of latents compressed in time, without texts."""
    folder = tmp_path_factory.mktemp("clips")
    return trained(folder, latents(folder / "shards", "clip", texts=False))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images of 8x8 pixels, the frames 0, 4 and 8 of a clip."""
    folder = tmp_path_factory.mktemp("keyframes")
    clip = blobs(1, seed=9)[0]
    for time in (0, 4, 8):
        pixels = ((clip[:, time] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{time:02d}.png")
    return folder


def complete(folder: Path, keyframes, refiner, *arguments) -> dict:
    """What the command measured; the clip is `clip.mp4`."""
    file = folder / "figures.json"
    given = ["--keyframes", keyframes, "--refiner", refiner, "--out", folder / "clip.mp4", "--json", file]
    assert drift("complete", *given, "--device", "cpu", *arguments) == 0
    return json.loads(file.read_text())


def gif_shape(path: Path) -> tuple[int, ...]:
    """Frames, columns and rows."""
    with Image.open(path) as file:
        sizes = [frame.size for frame in ImageSequence.Iterator(file)]
    return (len(sizes), *sizes[0])


def test_a_file_of_settings_for_shards_trains_a_refiner_of_clips(shards, tmp_path, capsys):
    file = settings_file(tmp_path / "clips.toml", shards, steps=5)
    figures = tmp_path / "figures.json"
    arguments = ["--config", file, "--steps", 2, "--out_dir", tmp_path / "run", "--json", figures]
    assert drift("train", *arguments) == 0
    page = capsys.readouterr().out
    for part in ("linear interpolation", "MSE refiner", "a keyframe every 8 frames"):
        assert part in page
    assert f"report: {tmp_path / 'run' / 'report.html'}" in page.replace("\n", "")
    found = json.loads(figures.read_text())
    assert found["2 keyframes"]["methods"]["MSE refiner"]["num_clips"] == 4
    refiner, config = load_clip_refiner(tmp_path / "run" / REFINER)
    assert (config.steps, config.num_levels) == (2, 2)
    assert refiner.classes.encoder.clip_shape == (3, 9, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--image-size 8", "--image-size has no effect with --dataset shards"),
        ("--min-key-patches 3", "--min-key-patches has no effect with --dataset shards"),
        ("--flip 1", "--flip has no effect with --dataset shards"),
        ("--backbone wan --ckpt-root /nowhere", "/nowhere"),
        ("--num-levels 9", "at most 3 levels"),
        ("--eval-levels 7", "eval_levels go from 0 to 1"),
        ("--target adjacent --objective drift", "set objective = 'mse'"),
        ("--interp-mode cubic", "interp_mode = 'cubic'"),
        ("--corrupt-sigma -1", "corrupt_sigma = -1"),
        ("--student-replace-prob 2", "student_replace_prob = 2"),
        ("--student-replace-prob 0.5", "no anchors of another model"),
        ("--held-out-root /nowhere/at/all", "/nowhere/at/all"),
        ("--data-root /nowhere/shards", "/nowhere/shards"),
        ("--codebook /nowhere.safetensors", "/nowhere.safetensors"),
        ("--num-pseudo-classes 99", "num_pseudo_classes = 99 for 12 training clips"),
        ("--patch-size 3", "patch_size = 3 does not divide frames of 8x8"),
        ("--backbone wan", "takes clips of 16 channels, these have 3"),
        ("--num-levles 2", "--num-levels"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(shards, tmp_path, capsys, options, said):
    file = settings_file(tmp_path / "clips.toml", shards)
    line = refused(capsys, "train", "--config", file, "--out-dir", tmp_path / "run", *options.split())
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["clips.toml"]


def test_options_of_clips_have_no_place_with_images(tmp_path, capsys):
    line = refused(capsys, "train", "--dataset", "fake", "--target", "clean", "--out-dir", tmp_path / "run")
    assert "--target has no effect with --dataset fake" in line
    assert list(tmp_path.iterdir()) == []


def test_a_storyboard_of_pixels_is_completed_with_its_keyframes_unchanged(images, of_pixels, tmp_path):
    found = complete(tmp_path, images, of_pixels, "--times", "0,4,8", "--compare", tmp_path / "plain.gif")
    assert found["times"] == [0, 4, 8]
    assert found["keeps_keyframes"] is True
    assert found["level"] == 0  # the one of two with three given frames
    assert (tmp_path / "clip.mp4").stat().st_size > 0
    assert gif_shape(tmp_path / "plain.gif") == (9, 8, 8)


def test_keyframes_come_from_a_list_and_are_spread_evenly_without_times(images, of_pixels, tmp_path):
    names = [images / "08.png", images / "00.png"]  # in the order of the list
    found = complete(tmp_path, ",".join(map(str, names)), of_pixels)
    assert (found["times"], found["level"]) == ([0, 8], 1)
    assert complete(tmp_path, images / "04.png", of_pixels, "--times", "4")["times"] == [4]


def test_images_of_other_sizes_are_fitted(of_pixels, tmp_path):
    (tmp_path / "k").mkdir()
    for number, size in enumerate([(31, 17), (640, 480), (3, 5)]):
        values = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "k" / f"{number}.png")
    assert complete(tmp_path, tmp_path / "k", of_pixels)["keeps_keyframes"] is True


def test_latents_of_frames_take_a_prompt_and_keep_their_keyframes(images, of_frames, tmp_path):
    found = complete(tmp_path, images, of_frames, "--times", "0,2,4", "--prompt", "a red square moves right")
    assert found["keeps_keyframes"] is True
    frames = tmp_path / "clip.gif"
    arguments = ["--keyframes", images, "--refiner", of_frames, "--out", frames, "--device", "cpu", "--alpha", "2"]
    assert drift("complete", *arguments, "--prompt", "") == 0  # an empty prompt is one
    assert gif_shape(frames) == (5, 32, 32)


def test_latents_compressed_in_time_become_a_clip_of_all_video_frames(images, of_clips, tmp_path):
    found = complete(tmp_path, images, of_clips, "--times", "0,2,4", "--compare", tmp_path / "plain.gif")
    assert found["keeps_keyframes"] is True
    assert gif_shape(tmp_path / "plain.gif") == (17, 32, 32)


def test_refiners_of_shards_without_a_manifest_complete_pixels(images, shards, tmp_path):
    (tmp_path / "foreign").mkdir()
    for tar in shards.glob("*.tar"):
        (tmp_path / "foreign" / tar.name).write_bytes(tar.read_bytes())
    refiner = trained(tmp_path, tmp_path / "foreign")
    assert load_clip_refiner(refiner)[0].manifest is None
    assert complete(tmp_path, images, refiner, "--times", "0,4,8")["keeps_keyframes"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--times", "0,8,4"], "times 0,8,4 do not rise"),
        (["--times", "0,4,4"], "times 0,4,4 do not rise"),
        (["--times", "0,4,9"], "have the frames 0 to 8"),
        (["--times", "-1,4,8"], "have the frames 0 to 8"),
        (["--times", "0,8"], "2 times for 3 keyframes"),
        (["--times", "0,x,8"], "--times 0,x,8 is not understood"),
        (["--prompt", "a red disc"], "trained without prompts; leave out --prompt"),
        (["--refiner", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--keyframes", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--keyframes", "/nowhere/0.png,/nowhere/1.png"], "/nowhere/0.png"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--out", "clip.doc"], "clip.doc"),
        (["--compare", "clip.doc"], "clip.doc"),
        (["--compare", "/proc/nowhere/clip.gif"], "/proc/nowhere/clip.gif"),
    ],
)
def test_a_storyboard_that_does_not_fit_is_one_line(images, of_pixels, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    given = ["--keyframes", images, "--refiner", of_pixels, "--out", "clip.mp4", "--device", "cpu"]
    assert said in refused(capsys, "complete", *given, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_images_or_refiners_are_one_line(images, of_pixels, tmp_path, capsys):
    (tmp_path / "k").mkdir()
    given = ["--out", tmp_path / "clip.mp4", "--device", "cpu"]
    assert "holds no images" in refused(
        capsys, "complete", "--keyframes", tmp_path / "k", "--refiner", of_pixels, *given
    )
    (tmp_path / "k" / "a.png").write_text("no image")
    assert "a.png" in refused(capsys, "complete", "--keyframes", tmp_path / "k", "--refiner", of_pixels, *given)
    codebook = of_pixels.parents[1] / "classes" / "codebook.safetensors"
    assert "holds Codebook" in refused(capsys, "complete", "--keyframes", images, "--refiner", codebook, *given)


def test_more_keyframes_than_frames_are_refused(images, of_frames, tmp_path, capsys):
    names = ",".join([str(images / "00.png")] * 6)
    line = refused(capsys, "complete", "--keyframes", names, "--refiner", of_frames, "--out", tmp_path / "c.mp4")
    assert "6 keyframes for a clip of 5 frames" in line


def test_latents_of_another_vae_are_refused(images, of_frames, tiny_checkpoint, tmp_path, capsys):
    given = ["--keyframes", images, "--refiner", of_frames, "--out", tmp_path / "c.mp4", "--prompt", "x"]
    line = refused(capsys, "complete", *given, "--ckpt-root", tiny_checkpoint)
    assert "did not make these latents" in line


def test_a_prompt_is_asked_for_and_read_by_the_encoder_of_the_training(images, of_frames, tmp_path, capsys):
    given = ["--keyframes", images, "--out", tmp_path / "c.mp4"]
    assert "give --prompt" in refused(capsys, "complete", *given, "--refiner", of_frames)
    refiner, config = load_clip_refiner(of_frames)
    assert refiner.manifest is not None
    manifest = refiner.manifest.model_copy(update={"text_encoder": "0123456789abcdef"})
    other = tmp_path / "other.safetensors"
    save_clip_refiner(other, replace(refiner, manifest=manifest), config, {})
    line = refused(capsys, "complete", *given, "--refiner", other, "--prompt", "a red disc")
    assert "was not trained with the text encoder in" in line


def test_an_autoencoder_is_trained_on_the_frames_of_shards(shards, tmp_path, capsys):
    common = ["--dataset", "shards", "--steps", 2, "--batch-size", 4, "--width", 4, "--stages", 1, "--device", "cpu"]
    common += ["--held-out-share", FAST["held_out_share"]]
    arguments = [*common, "--data-root", shards, "--out-dir", tmp_path / "mae", "--json", tmp_path / "made.json"]
    assert drift("train-mae", *arguments) == 0
    weights = json.loads((tmp_path / "made.json").read_text())["weights"]
    assert "data:image/png" in (tmp_path / "mae" / "report.html").read_text()
    changes = {"objective": "drift", "feature_loss_weight": 1.0, "feature_checkpoint": weights}
    file = settings_file(tmp_path / "clips.toml", shards, **changes)
    assert drift("train", "--config", file, "--out-dir", tmp_path / "run") == 0
    assert not (tmp_path / "run" / "features").exists()
    for name, value in (("held_out_share", 0.5), ("split_seed", 1)):
        file = settings_file(tmp_path / "clips.toml", shards, **{**changes, name: value})
        line = refused(capsys, "train", "--config", file, "--out-dir", tmp_path / "other")
        assert f"was trained with {name} = " in line
    file = settings_file(tmp_path / "clips.toml", shards, **changes, held_out_root=str(shards))
    assert "on the held-out clips" in refused(capsys, "train", "--config", file, "--out-dir", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_an_autoencoder_of_latents_shows_frames_where_their_vae_is_known(tiny_checkpoint, tmp_path, capsys):
    unknown, known = write_folder(tmp_path / "unknown", 6), latents(tmp_path / "known", "each", texts=False)
    common = ["--dataset", "shards", "--input-space", "latent", "--steps", 2, "--batch-size", 4, "--width", 4]
    common += ["--stages", 1, "--device", "cpu"]
    for root, vae, is_shown in ((unknown, [], False), (unknown, ["--vae-root", micro_wan_weights()], True)):
        folder = tmp_path / f"mae{is_shown}"
        assert drift("train-mae", *common, "--data-root", root, *vae, "--out-dir", folder) == 0
        page = (folder / "report.html").read_text()
        assert ("the VAE of these latents is not known" in page) != is_shown
        assert (page.count("data:image/png") > 0) == is_shown
    line = refused(capsys, "train-mae", *common, "--data-root", known, "--vae-root", tiny_checkpoint)
    assert "did not make these latents" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--data-root /nowhere", "/nowhere"),
        ("--data-root {shards} --input-space latent", "input_space"),
        ("--data-root {shards} --image-size 16", "image_size"),
    ],
)
def test_an_autoencoder_of_shards_refuses_what_does_not_fit(shards, tmp_path, capsys, options, said):
    arguments = options.format(shards=shards).split()
    arguments += ["--steps", "2", "--device", "cpu", "--out-dir", str(tmp_path / "mae")]
    assert said in refused(capsys, "train-mae", "--dataset", "shards", *arguments)
    assert list(tmp_path.iterdir()) == []
