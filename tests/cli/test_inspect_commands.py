"""Each verb writes its report, prints a table, gives JSON, and fails a cap with code 2 and one line."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentloom.cli.inspect_options import prompts_for, world_captions
from latentloom.cli.main import run
from latentloom.finetune.encoder_files import save_text_encoder
from latentloom.finetune.probes.prompts import NEUTRAL_PROMPTS
from latentloom.micro import default_checkpoint
from latentloom.micro.tokenizer import make_tokenizer
from latentloom.wan import checkpoints

FAST = ["--steps", "3", "--points", "2", "--num-frames", "5", "--height", "32", "--width", "32"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports go below the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the tiny checkpoint, in an epoch's folder."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for block in (0, 1):
        stem = f"diffusion_model.blocks.{block}.cross_attn.k"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(4, 24, generator=generator)
        tensors[f"{stem}.lora_B.weight"] = torch.randn(24, 4, generator=generator) * 0.1 * (1 + block)
    folder = tmp_path / "epoch3"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def written(tool: str) -> tuple[Path, dict]:
    """The one report of a tool, and its summary."""
    (folder,) = (Path("reports") / tool).iterdir()
    return folder, json.loads((folder / "summary.json").read_text())


def test_keys_reports_on_an_adapter(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "keys", str(adapter)]) == 0
    folder, summary = written("keys")
    assert folder.name.endswith("-epoch3")
    assert sorted(file.name for file in folder.iterdir()) == ["blocks.csv", "keys.csv", "report.md", "summary.json"]
    assert summary["results"]["groups"][0]["title"] == "LoRA of rank 4 for blocks of 24 channels"
    assert summary["inputs"]["files"][0]["path"] == str(adapter / "adapter_model.safetensors")
    out = capsys.readouterr().out
    assert "2 targets: cross_attn.k x 2" in out
    assert f"report: {folder / 'report.md'}" in out


def test_lora_delta_prints_json_and_nothing_else(
    adapter: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", "lora-delta", str(adapter), "--ckpt_root", str(tiny_checkpoint), "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    folder, summary = written("lora-delta")
    assert printed == {**summary, "report": str(folder / "report.md")}
    assert folder.name.endswith("-epoch3-adapter_model")
    assert summary["results"]["by_type"]["cross_attn"]["worst"] == "blocks.1.cross_attn.k"
    assert [Path(file["path"]).name for file in summary["inputs"]["base"]] == ["diffusion_pytorch_model.safetensors"]


def test_a_cap_that_is_exceeded_fails_after_the_report(
    adapter: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["inspect", "lora-delta", str(adapter), "--ckpt_root", str(tiny_checkpoint), "--out", "here"]
    assert run([*command, "--cap", "1e6"]) == 0
    capsys.readouterr()
    assert run([*command, "--cap", "0.01"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("latentloom: 2 of 2 changes are above --cap 0.01, most blocks.1.cross_attn.k with")
    summary = json.loads(Path("here/summary.json").read_text())
    worst_first = [target["target"] for target in summary["results"]["above_cap"]]
    assert worst_first == ["blocks.1.cross_attn.k", "blocks.0.cross_attn.k"]


def test_an_adapter_for_another_model_is_refused_in_one_line(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("lora-delta", "attention"):
        assert run(["inspect", verb, str(adapter)]) == 2
        assert "[24, 24]" in capsys.readouterr().err
    assert not Path("reports").exists()


def test_attention_reports_every_layer(
    adapter: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("prompts.txt").write_text("a red circle\nblue\n")
    command = ["inspect", "attention", str(adapter), "--ckpt_root", str(tiny_checkpoint), "--prompts", "prompts.txt"]
    assert run([*command, *FAST, "--cap", "100"]) == 0
    assert "cross_attn" in capsys.readouterr().out
    folder, summary = written("attention")
    assert len((folder / "layers.csv").read_text().splitlines()) == 1 + 2 * 2 * 2
    assert summary["inputs"]["prompts"] == ["a red circle", "blue"]
    assert len(summary["results"]["timesteps"]) == 2
    assert run([*command, *FAST, "--cap", "0"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("latentloom: the attention logits drift by")


def test_encoder_drift_of_the_base_is_none(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoints.load_text_encoder(tiny_checkpoint).state_dict()
    folder = tmp_path / "epoch1"
    save_text_encoder(folder / "text_encoder.safetensors", state, partial=False)
    Path("prompts.txt").write_text("\n".join(["a", "small", "red", "circle", "moves", "left"]))
    command = ["inspect", "encoder-drift", str(folder), "--ckpt_root", str(tiny_checkpoint), "--prompts", "prompts.txt"]
    assert run(command) == 0
    assert "exactly what its base gives" in capsys.readouterr().out
    results = written("encoder-drift")[1]["results"]
    for figure in ("token_cosine", "pooled_cosine", "overlap"):
        assert results[figure] == {"mean": 1.0, "lowest": 1.0, "highest": 1.0}


def test_prompts_are_the_files_or_fit_the_model(tmp_path: Path) -> None:
    captions = world_captions(5)
    assert prompts_for(default_checkpoint(), None, 5) == captions
    assert len(set(captions)) == 5
    tokens = [make_tokenizer()(caption)["input_ids"] for caption in captions]
    unknown = make_tokenizer().unk_token_id
    assert not any(unknown in ids for ids in tokens)
    hollow = tmp_path / "other"
    hollow.mkdir()
    save_file({"blocks.0.attn.q.weight": torch.zeros(1)}, hollow / "t5.safetensors")
    assert prompts_for(hollow, None, 3) == list(NEUTRAL_PROMPTS[:3])


def test_no_verb_reads_paths_that_are_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("checkpoint", "keys", "lora-delta", "attention", "encoder-drift"):
        assert run(["inspect", verb, "missing"]) == 2
        assert capsys.readouterr().err.count("\n") == 1, verb
    assert not Path("reports").exists()
