"""`latentloom generate` and `embed`: prompts in, files out, one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.cli.clip_files import clip_files
from latentloom.cli.main import run
from latentloom.errors import ConfigError, FileError
from latentloom.storage import load_object, read_video, save_object
from latentloom.tensors import TextEmbeddings

SMALL = ["--num-frames", "5", "--height", "16", "--width", "32", "--steps", "2", "--device", "cpu"]
PROMPT = "A small red circle moves to the left on a black background."


@pytest.fixture
def generate(tiny_checkpoint: Path):
    """Runs `latentloom generate` on the tiny checkpoint with a small clip; later options win."""

    def body(*arguments: object) -> int:
        return run(["generate", "--ckpt-root", str(tiny_checkpoint), *SMALL, *map(str, arguments)])

    return body


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_prompt_becomes_a_clip_of_the_size_and_rate_asked_for(generate, tmp_path: Path, suffix: str):
    clip = tmp_path / "new folder" / f"clip{suffix}"
    assert generate(PROMPT, "--out", clip) == 0
    frames, fps = read_video(clip)
    assert frames.shape == (5, 16, 32, 3)
    assert fps == pytest.approx(8, rel=0.05)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(generate, tmp_path: Path):
    for name, seed in [("first", 7), ("again", 7), ("other", 8)]:
        assert generate(PROMPT, "--seed", seed, "--out", tmp_path / f"{name}.png") == 0
    first, again, other = (read_video(tmp_path / f"{name}.png")[0] for name in ("first", "again", "other"))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_json_reports_settings_files_and_seconds_on_clean_standard_output(
    generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clip = tmp_path / "clip.png"
    assert generate(PROMPT, "--seed", 3, "--shift", 5, "--guidance", 2, "--out", clip, "--json", "-") == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["files"] == [str(clip)]
    assert measured["prompts"] == [PROMPT]
    assert measured["seeds"] == [3]
    assert (measured["model"], measured["fps"], measured["device"], measured["dtype"]) == ("micro", 8, "cpu", "float32")
    assert (measured["num_frames"], measured["height"], measured["width"], measured["steps"]) == (5, 16, 32, 2)
    assert (measured["shift"], measured["guidance"], measured["sampler"]) == (5.0, [2.0, 2.0], "unipc")
    assert set(measured["seconds"]) == {"load", "encoding", "sampling", "decoding"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())


def test_several_prompts_go_to_a_folder_a_pattern_or_a_sheet(generate, tmp_path: Path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeffa red circle\r\n\n  a blue square \n", encoding="utf-8")
    assert generate("green", "--prompts", prompts, "--out", tmp_path / "clips") == 0
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]
    assert generate("green", "--prompts", prompts, "--out", tmp_path / "clip-{index}.png", "--batch-size", "2") == 0
    assert generate("a blue square", "--out", tmp_path / "alone.png") == 0
    assert np.array_equal(read_video(tmp_path / "clip-2.png")[0], read_video(tmp_path / "alone.png")[0])
    assert generate("--prompts", prompts, "--out", tmp_path / "sheet.png") == 0
    assert (tmp_path / "sheet.png").stat().st_size > 0


def test_embeddings_take_the_place_of_prompts(generate, tiny_checkpoint: Path, tmp_path: Path):
    stored, measured = tmp_path / "e.safetensors", tmp_path / "measured.json"
    options = ["--ckpt_root", str(tiny_checkpoint), "--out", str(stored), "--json", str(measured), "--device", "cpu"]
    assert run(["embed", PROMPT, "blue", *options]) == 0
    embeddings = load_object(stored, TextEmbeddings)
    report = json.loads(measured.read_text())
    assert report["prompts"] == [PROMPT, "blue"]
    assert report["lengths"] == embeddings.lengths.tolist()
    assert (report["dim"], report["dtype"], len(report["encoder"])) == (16, "float32", 16)
    assert embeddings.lengths[1] == 2
    assert generate("--embeddings", stored, "--out", tmp_path / "e-{index}.png") == 0
    assert generate(PROMPT, "blue", "--out", tmp_path / "p-{index}.png") == 0
    for index in range(2):
        from_prompt, from_embedding = (read_video(tmp_path / f"{kind}-{index}.png")[0] for kind in "pe")
        assert np.array_equal(from_prompt, from_embedding)


def test_group_offloading_and_fp8_are_options(generate, tmp_path: Path):
    assert generate(PROMPT, "--offload", "group", "--out", tmp_path / "offloaded.png") == 0
    assert generate(PROMPT, "--out", tmp_path / "plain.png") == 0
    assert generate(PROMPT, "--fp8", "--out", tmp_path / "fp8.png") == 0
    offloaded, plain, fp8 = (read_video(tmp_path / f"{name}.png")[0] for name in ("offloaded", "plain", "fp8"))
    assert np.array_equal(offloaded, plain)
    difference = np.abs(fp8.astype(int) - plain.astype(int))
    assert 0 < difference.max() < 40


@pytest.mark.parametrize("prompt", ["", " \n\t", "red\ncircle", "\U0001f534", "a\x00red circle", "word " * 10_000])
def test_odd_prompts_still_make_a_clip(generate, tmp_path: Path, prompt: str):
    assert generate(prompt, "--out", tmp_path / "clip.png", "--json", tmp_path / "measured.json") == 0
    assert json.loads((tmp_path / "measured.json").read_text())["prompts"] == [prompt]
    assert read_video(tmp_path / "clip.png")[0].shape == (5, 16, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no prompt was given"),
        (["red \udcff"], "the prompt 'red \\udcff' is not valid UTF-8"),
        (["red", "--num-frames", "6"], "num_frames=6 is not 4k+1; use 5 or 9"),
        (["red", "--height", "17"], "height=17 is not a multiple of 16"),
        (["red", "--steps", "0"], "steps=0 is out of range"),
        (["red", "--guidance", "high"], "--guidance high is not understood"),
        (["red", "--guidance", "1,2,3"], "--guidance 1,2,3 is not understood"),
        (["red", "--guidance", "4,3"], "guidance=(4.0, 3.0) is for two experts"),
        (["red", "--guidance", "1", "--negative-prompt", "blue"], "--negative-prompt has no effect without guidance"),
        (["red", "--guidance", "nan"], "guidance=(nan, nan) is out of range"),
        (["red", "--seed", "-1"], "seed=-1 is out of range"),
        (["red", "--seed", "1", "--seed", "2"], "2 seeds were given for 1 clips"),
        (["red", "--sampler", "ddim"], "ddim"),
        (["red", "--batch-size", "0"], "batch-size"),
        (["red", "--out", "clip.webm"], "clip.webm is of no known format"),
        (["red", "blue", "--out", "clip.mp4"], "2 clips do not fit into clip.mp4"),
        (["--embeddings", "missing.safetensors"], "missing.safetensors"),
        (["--prompts", "missing.txt"], "missing.txt"),
        (["red", "--embeddings", "x.safetensors"], "both given"),
        (["red", "--device", "abacus"], "abacus"),
        (["red", "--device", "meta"], "device 'meta'; give cpu"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert generate(*arguments) == 2
    assert message in refusal(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_sampled(
    generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
):
    def never(*_, **__):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("latentloom.wan.pipeline.WanPipeline.load", never)
    (tmp_path / "file").write_text("")
    assert generate(PROMPT, "--out", tmp_path / "clip.mp4", option, tmp_path / "file" / "x.mp4") == 2
    assert "cannot write" in refusal(capsys)


def test_prompt_files_that_hold_no_text_are_refused(generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n \n")
    binary.write_bytes(b"red\xff\xfe")
    assert generate("--prompts", empty) == 2
    assert "holds no prompt" in refusal(capsys)
    assert generate("--prompts", binary) == 2
    assert "is not UTF-8 text (byte 3)" in refusal(capsys)
    assert generate("--prompts", tmp_path) == 2
    assert "directory" in refusal(capsys)


def test_embeddings_of_another_width_are_refused(generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    stored = tmp_path / "wide.safetensors"
    save_object(stored, TextEmbeddings.from_list([torch.zeros(3, 24)]))
    assert generate("--embeddings", stored, "--out", tmp_path / "clip.png") == 2
    assert "24 channels and MicroWan takes 16" in refusal(capsys)
    assert not (tmp_path / "clip.png").exists()


@pytest.mark.parametrize("noun", ["generate", "embed"])
def test_a_checkpoint_that_does_not_exist_is_refused(noun: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    missing, out = tmp_path / "nowhere", tmp_path / "out.png"
    assert run([noun, "red", "--ckpt-root", str(missing), "--out", str(out)]) == 2
    assert refusal(capsys) == f"latentloom: {missing} does not exist; give a checkpoint's folder or file"
    assert not out.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for noun in ("generate", "embed"):
        assert run([noun, "red", "--ckpt-root", str(tmp_path)]) == 2
        assert str(tmp_path) in refusal(capsys)


def test_damaged_embeddings_are_refused(generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    whole, cut = tmp_path / "whole.safetensors", tmp_path / "cut.safetensors"
    save_object(whole, TextEmbeddings.from_list([torch.zeros(3, 16)]))
    for num_bytes in (0, 7, 100, whole.stat().st_size - 1):
        cut.write_bytes(whole.read_bytes()[:num_bytes])
        assert generate("--embeddings", cut, "--out", tmp_path / "clip.png") == 2
        assert str(cut) in refusal(capsys)


def test_without_a_checkpoint_the_model_is_microwan(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("latentloom.micro.default_checkpoint", lambda: tiny_checkpoint)
    assert run(["generate", PROMPT, *SMALL, "--out", str(tmp_path / "clip.png")]) == 0
    assert run(["embed", PROMPT, "--device", "cpu", "--out", str(tmp_path / "embeddings.safetensors")]) == 0
    assert len(load_object(tmp_path / "embeddings.safetensors", TextEmbeddings)) == 1


def test_files_are_named_by_folder_pattern_or_name():
    assert clip_files(Path("clips"), 2) == [Path("clips/0.mp4"), Path("clips/1.mp4")]
    assert clip_files(Path("a/{index}.gif"), 2) == [Path("a/0.gif"), Path("a/1.gif")]
    assert clip_files(Path("clip.MP4"), 1) == [Path("clip.MP4")]
    assert clip_files(Path("sheet.png"), 3) == [Path("sheet.png")]
    with pytest.raises(ConfigError, match="name a folder"):
        clip_files(Path("clip.gif"), 2)
    with pytest.raises(FileError, match="no known format"):
        clip_files(Path("clip.avi"), 1)
