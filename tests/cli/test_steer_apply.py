"""`latentloom steer apply`: clips, page, record and figures out; one line for every mistake."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.cli.main import run
from latentloom.runs import RunRecord
from latentloom.steering.control.files import save_control
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.plan_file import load_plan_config
from latentloom.storage import read_video, save_object
from latentloom.tensors import TextEmbeddings

SMALL = ["--num-frames", "5", "--height", "16", "--width", "16", "--steps", "2", "--device", "cpu"]
PROMPT, INJECTED = "a small red circle", "a large blue square moves up"


@pytest.fixture
def steer(tiny_checkpoint: Path, tmp_path: Path):
    """Runs `latentloom steer apply` on the tiny checkpoint of two blocks; later options win."""

    def body(*arguments: object) -> int:
        defaults = ["--ckpt-root", tiny_checkpoint, *SMALL, "--out", tmp_path / "out"]
        return run(["steer", "apply", *map(str, [*defaults, *arguments])])

    return body


def measured(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def plan_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "plan.toml").write_text(text)
    return tmp_path / "plan.toml"


def test_a_clip_leaves_a_folder_that_tells_all(steer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert steer(PROMPT, "--inject", INJECTED, "--blocks", "1", "--seed", 3) == 0
    out = tmp_path / "out"
    files = "config.toml contact_sheet.png plan.toml record.json report.html side_by_side.mp4 steered.mp4"
    assert sorted(path.name for path in out.iterdir()) == files.split()
    assert read_video(out / "steered.mp4")[0].shape == (5, 16, 16, 3)
    frames, fps = read_video(out / "side_by_side.mp4")
    assert (len(frames), frames.shape[2], fps) == (5, 3 * 192 + 2 * 8, 8)
    record = RunRecord.read(out)
    assert (record.status, record.seeds) == ("finished", [3])
    assert record.results["equals_swapped"] is False
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (PROMPT, INJECTED, "░█"))
    assert page.count("<video") == 3
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("plain", "steered", "swapped", "neither"))


def test_all_blocks_at_full_strength_equal_the_swapped_clip_and_strength_zero_the_plain_one(steer, capsys):
    assert steer(PROMPT, "--inject", INJECTED, "--json", "-") == 0
    whole = measured(capsys)
    assert (whole["equals_plain"], whole["equals_swapped"]) == (False, True)
    assert whole["velocity_change"] > 0
    assert whole["guided_velocity_change"] > 0
    assert [item["blocks"] for item in whole["operations"]] == ["██"]
    assert steer(PROMPT, "--inject", INJECTED, "--strength", 0, "--json", "-") == 0
    nothing = measured(capsys)
    assert (nothing["equals_plain"], nothing["equals_swapped"]) == (True, False)
    assert nothing["velocity_change"] == nothing["guided_velocity_change"] == 0


def test_flags_are_a_plan_whose_file_does_the_same_again(steer, tmp_path: Path, capsys):
    flags = ["--blocks", "0", "--strength", "0.5", "--mode", "both", "--window", "0,0.5", "--tokens", "0,3"]
    assert steer(PROMPT, "--inject", INJECTED, *flags, "--json", "-") == 0
    by_flags = measured(capsys)
    assert [item["site"] for item in by_flags["operations"]] == ["context", "hidden_states"]
    assert by_flags["clips"][0]["velocity_change_by_step"][1] == 0  # the second step lies outside the window
    assert load_plan_config(tmp_path / "out" / "plan.toml").operations[0].tokens == (0, 3)
    assert steer(PROMPT, "--plan", tmp_path / "out" / "plan.toml", "--out", tmp_path / "again", "--json", "-") == 0
    by_file = measured(capsys)
    for key in ("operations", "clips", "injected"):
        assert by_file[key] == by_flags[key]
    first, again = (read_video(tmp_path / name / "steered.mp4")[0] for name in ("out", "again"))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("mode", ["context", "hidden_states"])
def test_the_mode_is_the_site(steer, capsys, mode):
    assert steer(PROMPT, "--inject", INJECTED, "--mode", mode, "--json", "-") == 0
    assert [(item["site"], item["method"]) for item in measured(capsys)["operations"]] == [(mode, "lerp")]


def test_several_clips_have_seeds_and_injections_of_their_own(steer, tmp_path: Path, capsys):
    injected = ["--inject", INJECTED, "--inject", "a green square"]
    assert steer(PROMPT, "blue", *injected, "--seed", 1, "--seed", 2, "--json", "-") == 0
    report = measured(capsys)
    assert [clip["seed"] for clip in report["clips"]] == [1, 2]
    assert [clip["injected"] for clip in report["clips"]] == [INJECTED, "a green square"]
    assert [clip["equals_swapped"] for clip in report["clips"]] == [True, True]
    assert (tmp_path / "out" / "side_by_side_1.mp4").is_file()
    assert read_video(tmp_path / "out" / "steered_1.mp4")[0].shape == (5, 16, 16, 3)


def test_a_plan_of_vectors_has_no_swapped_clip_and_finds_files_beside_it(steer, tmp_path: Path, capsys):
    directions = torch.randn(1, 2, 24, generator=torch.Generator().manual_seed(0))
    (tmp_path / "plans").mkdir()
    save_control(tmp_path / "plans" / "v.safetensors", ControlVector("hidden_states", directions, "micro"))
    path = plan_file(tmp_path / "plans", '[[operations]]\nvector = "v.safetensors"\nstrength = 3.0')
    assert steer(PROMPT, "--plan", path, "--json", "-") == 0
    report = measured(capsys)
    assert report["injected"] is None
    assert report["equals_swapped"] is None
    assert report["equals_plain"] is False
    assert set(report["clips"][0]["attributes"]) == {"plain", "steered"}
    assert steer(PROMPT, "--plan", tmp_path / "out" / "plan.toml", "--out", tmp_path / "again") == 0


def test_micro_wan_tells_what_all_three_clips_show(tmp_path: Path, capsys):
    red, blue = (f"A large {colour} square moves up on a white background." for colour in ("red", "blue"))
    assert run(["steer", "apply", red, "--inject", blue, "--steps", "8", "--out", str(tmp_path), "--json", "-"]) == 0
    report = measured(capsys)
    attributes = report["clips"][0]["attributes"]
    assert [attributes[name]["colour"] for name in ("plain", "steered", "swapped")] == ["red", "blue", "blue"]
    assert report["attribute_flips"]["colour"] == {"clips": 1, "as_swapped": 1, "as_plain": 0}


def test_clips_that_are_not_square_are_not_read(steer, capsys):
    assert steer(PROMPT, "--inject", INJECTED, "--width", 32, "--json", "-") == 0
    report = measured(capsys)
    assert report["clips"][0]["attributes"] is None
    assert report["attribute_flips"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to steer with; give --inject PROMPT, or --plan FILE"),
        (["--inject", "a", "--blocks", "5"], "this model has 2 blocks, 0 to 1"),
        (["--inject", "a", "--blocks", "lateish"], "blocks 'lateish' are not understood"),
        (["--inject", "a", "--strength", "1.5"], "strength 1.5 of lerp in block 0 is out of range"),
        (["--inject", "a", "--strength", "nan"], "strength nan of lerp in block 0 is out of range"),
        (["--inject", "a", "--strength", "much"], "strength 'much' is not understood"),
        (["--inject", "a", "--method", "replace", "--strength", "0.5"], "use 0 or 1"),
        (["--inject", "a", "--window", "0.5"], "--window '0.5' is not understood"),
        (["--inject", "a", "--window", ""], "--window '' is not understood"),
        (["--inject", "a", "--window", "0.5,0.2"], "window (0.5, 0.2) of the schedule"),
        (["--inject", "a", "--tokens", "some"], "--tokens 'some' is not understood"),
        (["--inject", "a", "--tokens", "3,1"], "tokens (3, 1)"),
        (["--inject", "a", "--mode", "keys"], "Invalid value for '--mode': 'keys' is not one of"),
        (["--inject", "a", "--inject", "b"], "injects 2 prompts and there are 1 clips"),
        (["--plan", "none.toml"], "cannot read the settings none.toml"),
        (["--inject", "a", "--guidance", "1", "--negative-prompt", "b"], "--negative-prompt has no effect"),
    ],
)
def test_a_mistake_in_the_flags_is_told_in_one_line(steer, tmp_path: Path, capsys, arguments, message):
    assert steer(PROMPT, *arguments) == 2
    assert message in refusal(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the plan has no operation"),
        ("num_blocks = 30\n[[operations]]\nprompt = 'a'", "for a model of 30 blocks and this one has 2"),
        ("[[operations]]\nprompt = 'a'\nstrenght = 1.0", "the nearest is 'operations.strength'"),
        ("[[operations]]\nprompt = 'a'\nblocks = '0-9'", "this model has 2 blocks"),
        ("[[operations]]\nprompt = 'a'\nstrength = -1.0", "strength -1.0 of lerp"),
        ("[[operations]]\nembeddings = 'wide.safetensors'", "32 channels for a model that takes 16"),
        ("[[operations]]\nembeddings = 'nan.safetensors'", "holds NaN or infinities"),
        ("[[operations]]\nvector = 'deep.safetensors'", "is for a model of 30 blocks, not 2"),
        ("[[operations]]\nvector = 'wide_vector.safetensors'", "32 channels for a model that takes 24"),
        ("[[operations]]\nvector = 'none.safetensors'", "none.safetensors"),
        ("operations = 3", "operations = 3"),
        ("[[operations]", "is not TOML"),
    ],
)
def test_a_mistake_in_a_plan_file_is_told_in_one_line(steer, tmp_path: Path, capsys, text, message):
    save_object(tmp_path / "wide.safetensors", TextEmbeddings.from_list([torch.ones(2, 32)]))
    save_object(tmp_path / "nan.safetensors", TextEmbeddings.from_list([torch.full((2, 16), torch.nan)]))
    for name, blocks, width in (("deep", 30, 24), ("wide_vector", 2, 32)):
        vector = ControlVector("hidden_states", torch.ones(1, blocks, width), "micro")
        save_control(tmp_path / f"{name}.safetensors", vector)
    assert steer(PROMPT, "--plan", plan_file(tmp_path, text)) == 2
    assert message in refusal(capsys)
    assert not (tmp_path / "out").exists()


def test_a_plan_and_flags_together_are_refused(steer, tmp_path: Path, capsys):
    path = plan_file(tmp_path, "[[operations]]\nprompt = 'a'")
    for flags in (["--inject", "a"], ["--blocks", "0"], ["--mode", "both"]):
        assert steer(PROMPT, "--plan", path, *flags) == 2
        assert "--plan and flags were both given" in refusal(capsys)
