"""Trained adapters and encoders in the commands that run a model, and a trained encoder in other layouts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from finetune.trained_adapter import save, train
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5EncoderModel

from latentloom.cli.finetuned import choose_finetuned
from latentloom.cli.main import run
from latentloom.finetune.adapter_files import read_adapter
from latentloom.finetune.encoder_files import load_text_encoder_file, save_text_encoder
from latentloom.micro import default_checkpoint
from latentloom.storage import load_object, read_video
from latentloom.tensors import TextEmbeddings
from latentloom.wan import checkpoints
from latentloom.wan.layouts import recognise
from latentloom.wan.pipeline import WanPipeline, facts_of

SMALL = ["--num-frames", "5", "--height", "16", "--width", "32", "--steps", "2", "--device", "cpu"]
PROMPT = "a red circle"
Command = Callable[..., int]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an adapter that is hard to overlook."""
    folder = tmp_path_factory.mktemp("adapter") / "epoch1"
    _, state = train(("cross_attn.k", "cross_attn.v", "cross_attn.o", "ffn.2"))
    save(folder, {name: 3 * tensor for name, tensor in state.items()})
    return folder


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained encoder, whole and in part."""
    folder = tmp_path_factory.mktemp("encoder") / "epoch1"
    trained = checkpoints.load_text_encoder(tiny_checkpoint).state_dict()
    generator = torch.Generator().manual_seed(0)
    trained = {name: weight + torch.randn(weight.shape, generator=generator) for name, weight in trained.items()}
    trained["encoder.embed_tokens.weight"] = trained["shared.weight"]
    save_text_encoder(folder / "text_encoder.safetensors", trained, partial=False)
    upper = {name: weight for name, weight in trained.items() if "block.1." in name}
    save_text_encoder(folder / "upper.safetensors", upper, partial=True)
    return folder


@pytest.fixture
def generate(tiny_checkpoint: Path, tmp_path: Path) -> Command:
    """Runs `latentloom generate` on the tiny checkpoint into `NAME.png` and `NAME.json`."""

    def body(name: str, *arguments: object, root: Path = tiny_checkpoint) -> int:
        written = ["--out", tmp_path / f"{name}.png", "--json", tmp_path / f"{name}.json"]
        return run(["generate", PROMPT, "--ckpt-root", str(root), *SMALL, *map(str, [*written, *arguments])])

    return body


def clip(folder: Path, name: str) -> np.ndarray:
    return read_video(folder / f"{name}.png")[0]


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of the mistake, below the progress bar of a command that shows one."""
    lines = [line for line in capsys.readouterr().err.strip().splitlines() if not line.startswith("converting ")]
    assert len(lines) == 1, lines
    return lines[0]


def test_an_adapter_changes_the_clip_by_its_strength(generate: Command, adapter: Path, tmp_path: Path) -> None:
    assert generate("plain") == 0
    assert generate("trained", "--lora", adapter) == 0
    assert generate("file", "--lora", adapter / "adapter_model.safetensors") == 0
    assert generate("off", "--lora", adapter, "--lora-strength", 0) == 0
    assert generate("halves", "--lora", adapter, "--lora", adapter, "--lora-strength", 0.5) == 0
    assert not np.array_equal(clip(tmp_path, "plain"), clip(tmp_path, "trained"))
    assert np.array_equal(clip(tmp_path, "file"), clip(tmp_path, "trained"))
    assert np.array_equal(clip(tmp_path, "off"), clip(tmp_path, "plain"))
    assert np.abs(clip(tmp_path, "halves").astype(int) - clip(tmp_path, "trained")).max() <= 1
    used = json.loads((tmp_path / "halves.json").read_text())["lora"]
    file = str(adapter / "adapter_model.safetensors")
    assert used == [{"file": file, "strength": 0.5, "part": "all transformers"}] * 2
    assert json.loads((tmp_path / "plain.json").read_text())["lora"] == []


def test_an_encoder_changes_the_clip_and_is_named(generate: Command, encoder: Path, tmp_path: Path) -> None:
    for name, options in (("plain", []), ("whole", [encoder]), ("upper", [encoder / "upper.safetensors"])):
        assert generate(name, *(["--text-encoder", *options] if options else [])) == 0
    clips = [clip(tmp_path, name) for name in ("plain", "whole", "upper")]
    assert not any(np.array_equal(clips[a], clips[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert json.loads((tmp_path / "whole.json").read_text())["text_encoder"] == str(
        encoder / "text_encoder.safetensors"
    )


def test_embed_takes_the_trained_encoder(tiny_checkpoint: Path, encoder: Path, tmp_path: Path) -> None:
    out, measured = tmp_path / "e.safetensors", tmp_path / "e.json"
    arguments = ["embed", PROMPT, "--ckpt-root", tiny_checkpoint, "--out", out, "--json", measured, "--device", "cpu"]
    assert run([*map(str, arguments)]) == 0
    plain = load_object(out, TextEmbeddings).tokens
    assert run([*map(str, arguments), "--text-encoder", str(encoder)]) == 0
    assert not torch.allclose(load_object(out, TextEmbeddings).tokens, plain, atol=0.1)
    assert json.loads(measured.read_text())["text_encoder"] == str(encoder)


@pytest.fixture(scope="module")
def two_experts(
    tiny_checkpoint: Path, tiny_low_expert: WanTransformer3DModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint with a low-noise expert, declared to be T2V-A14B."""
    root = tmp_path_factory.mktemp("experts") / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    tiny_low_expert.save_pretrained(root / "transformer_2")
    index = json.loads((root / "model_index.json").read_text())
    index["latentloom"] = {"model": "t2v-a14b"}
    (root / "model_index.json").write_text(json.dumps(index))
    return root


def test_each_expert_gets_its_adapter(two_experts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, state = train(("cross_attn.v",))
    opposite = {name: -tensor if "lora_B" in name else tensor for name, tensor in state.items()}
    save(tmp_path / "epoch1", state, expert="high")
    save(tmp_path / "epoch1", opposite, expert="low")
    high, low = tmp_path / "epoch1" / "high_noise", tmp_path / "epoch1" / "adapter_model_low_noise.safetensors"
    plain = save(tmp_path / "plain", state)
    key = "blocks.0.attn2.to_v.weight"
    change = torch.matmul(*reversed(read_adapter(plain)["blocks.0.cross_attn.v"]))
    facts = facts_of(two_experts)
    before = [part.get_parameter(key).detach() for part in transformers(WanPipeline.load(two_experts, device="cpu"))]
    cases = {(high,): (1, 0), (low,): (0, -1), (tmp_path / "epoch1",): (1, -1), (plain,): (1, 1), (high, plain): (2, 1)}
    for files, factors in cases.items():
        trained = choose_finetuned(list(files), None, None, facts)
        after = transformers(WanPipeline.load(two_experts, device="cpu", prepare=trained.prepare))
        for old, part, factor in zip(before, after, factors, strict=True):
            assert torch.allclose(part.get_parameter(key) - old, factor * change, atol=1e-6)
        assert ("so it goes to both" in capsys.readouterr().out) == (plain in files)


def transformers(pipeline: WanPipeline) -> list[WanTransformer3DModel]:
    assert pipeline.transformer_2 is not None
    return [pipeline.transformer, pipeline.transformer_2]


def test_mistakes_are_one_line(
    generate: Command, adapter: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases: list[tuple[list[object], str]] = [
        (["--lora", tmp_path / "none"], "does not exist; give an adapter"),
        (["--lora", tmp_path], "holds no adapter_model.safetensors"),
        (["--lora", encoder / "text_encoder.safetensors"], "is no part of a LoRA adapter"),
        (["--text-encoder", adapter / "adapter_model.safetensors"], "no tensor of a UMT5 encoder"),
        (["--text-encoder", adapter], "does not exist; give a text encoder"),
        (["--lora-strength", 2], "--lora-strength was given without --lora"),
        (["--lora", adapter, "--lora-strength", 2, "--lora-strength", 3], "2 strengths for 1 adapters"),
    ]
    for options, words in cases:
        assert generate("mistake", *options) == 2
        assert words in refusal(capsys)


def test_an_adapter_of_another_model_is_refused_before_a_clip_is_made(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", PROMPT, "--lora", str(adapter), "--out", str(tmp_path / "clip.png")]) == 2
    message = refusal(capsys)
    assert str(adapter) in message
    assert "6 blocks" in message


@pytest.mark.parametrize("file", ["text_encoder.safetensors", "upper.safetensors"])
def test_a_trained_encoder_becomes_a_folder_of_hugging_faces(
    tiny_checkpoint: Path, encoder: Path, tmp_path: Path, file: str
) -> None:
    out = tmp_path / "hf"
    arguments = ["convert", encoder / file, out, "--layout", "diffusers", "--ckpt-root", tiny_checkpoint]
    assert run([*map(str, arguments)]) == 0
    model = UMT5EncoderModel.from_pretrained(out / "text_encoder")
    expected = checkpoints.load_text_encoder(tiny_checkpoint)
    load_text_encoder_file(expected, encoder / file)
    ids = AutoTokenizer.from_pretrained(out / "tokenizer")(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).last_hidden_state, expected(ids).last_hidden_state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_a_trained_encoder_becomes_comfyuis_file_with_its_tokenizer(
    tiny_checkpoint: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "base"))
    (root / "tokenizer" / "spiece.model").write_bytes(b"sentence piece")
    source = encoder / "text_encoder.safetensors"
    arguments = ["convert", source, tmp_path / "comfy", "--layout", "comfy"]
    assert run([*map(str, [*arguments, "--ckpt-root", root])]) == 0
    assert "no SentencePiece model" not in capsys.readouterr().out
    file = tmp_path / "comfy" / "text_encoders" / "umt5_xxl.safetensors"
    stored = load_file(file)
    assert bytes(stored.pop("spiece_model").numpy()) == b"sentence piece"
    assert stored.keys() == {name for name, _ in checkpoints.load_text_encoder(root).named_parameters()}
    found = recognise(tmp_path / "comfy")
    assert (found.layout, [part.role for part in found.components]) == ("comfy", ["text_encoder"])
    # ComfyUI's own file lends its tokenizer just as well
    again = ["convert", source, tmp_path / "again", "--layout", "comfy", "--ckpt-root", tmp_path / "comfy"]
    assert run([*map(str, again)]) == 0
    again_file = tmp_path / "again" / "text_encoders" / "umt5_xxl.safetensors"
    assert bytes(load_file(again_file)["spiece_model"].numpy()) == b"sentence piece"
    assert run([*map(str, [*arguments, "--overwrite"])]) == 0
    assert "no SentencePiece model" in capsys.readouterr().out


def test_a_part_of_an_encoder_needs_the_rest(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", encoder / "upper.safetensors", tmp_path / "out", "--layout", "comfy"]
    assert run([*map(str, arguments)]) == 2
    assert "holds only the tensors that were trained; give --ckpt-root" in refusal(capsys)


def test_an_encoder_of_another_model_is_not_dressed_up(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", encoder / "text_encoder.safetensors", tmp_path / "out", "--layout", "diffusers"]
    assert run([*map(str, arguments), "--ckpt-root", str(default_checkpoint())]) == 2
    assert "give the checkpoint that it was trained from" in refusal(capsys)
