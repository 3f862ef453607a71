"""Conversions move every bit, in both directions, and leave nothing half-written."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.cli.main import run
from latentloom.errors import CheckpointError, ConfigError, FileError
from latentloom.storage import read_header
from latentloom.wan import checkpoints, write
from latentloom.wan.convert import convert
from latentloom.wan.layouts import Layout
from latentloom.wan.pipeline import WanPipeline as OurPipeline


@pytest.fixture
def mixed_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny model with several types in one file, and bit patterns that a cast would lose."""
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "mixed"))
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    types = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
    tensors = {key: tensor.to(types[index % 4]) for index, (key, tensor) in enumerate(tensors.items())}
    tensors["blocks.0.scale_shift_table"] = torch.full((1, 6, 24), torch.nan)
    tensors["scale_shift_table"] = torch.full((1, 2, 24), -0.0)
    save_file(tensors, file, metadata={"format": "pt"})
    return root


ROUTES: list[list[Layout]] = [
    ["official", "diffusers"],
    ["comfy", "diffusers"],
    ["official", "comfy", "official", "diffusers"],
    ["comfy", "official", "comfy", "diffusers"],
]


@pytest.mark.parametrize("route", ROUTES, ids="-".join)
def test_there_and_back_every_bit_is_where_it_was(route: list[Layout], mixed_checkpoint: Path, tmp_path: Path) -> None:
    place = mixed_checkpoint
    for step, layout in enumerate(route):
        found = convert(place, tmp_path / f"{step}-{layout}", layout)
        assert found.layout == layout
        assert len(found.components) == 3
        place = found.root
    for folder in ("transformer", "text_encoder", "vae"):
        assert bits_in(place / folder) == bits_in(mixed_checkpoint / folder)
        assert config_of(place / folder) == config_of(mixed_checkpoint / folder)
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "model_index.json"):
        assert json.loads((place / name).read_text()) == json.loads((mixed_checkpoint / name).read_text())


def test_the_layouts_differ_in_names_only(tiny_checkpoint: Path, tmp_path: Path) -> None:
    official = convert(tiny_checkpoint, tmp_path / "official", "official").root
    comfy = convert(tiny_checkpoint, tmp_path / "comfy", "comfy").root
    assert sorted(str(path.relative_to(official)) for path in official.iterdir()) == [
        "Wan2.2_VAE.pth",
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "google",
        "latentloom.json",
        "models_t5_umt5-xxl-enc-bf16.pth",
    ]
    there = load_file(official / "diffusion_pytorch_model.safetensors")
    here = load_file(comfy / "diffusion_models" / "wan_micro.safetensors")
    assert bits(there) == bits(here)
    assert "blocks.1.cross_attn.norm_k.weight" in there
    encoder = torch.load(official / "models_t5_umt5-xxl-enc-bf16.pth", weights_only=True)
    assert encoder["blocks.1.ffn.fc2.weight"].shape == (16, 32)


def test_what_is_converted_loads_with_diffusers_own_pipeline(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "official", "official")
    again = convert(tmp_path / "official", tmp_path / "again", "diffusers").root
    pipeline = WanPipeline.from_pretrained(again)
    theirs = WanTransformer3DModel.from_pretrained(tiny_checkpoint / "transformer").state_dict()
    assert bits(pipeline.transformer.state_dict()) == bits(theirs)
    assert pipeline.scheduler.config.flow_shift == 3.0


def test_the_same_clip_comes_out_of_every_layout(tiny_checkpoint: Path, tmp_path: Path) -> None:
    roots = [tiny_checkpoint, *[convert(tiny_checkpoint, tmp_path / name, name).root for name in ("official", "comfy")]]
    size: dict[str, Any] = {"num_frames": 5, "height": 32, "width": 32, "steps": 2}
    clips = [OurPipeline.load(root).generate(["a red circle"], seeds=[0], **size)[0] for root in roots]
    assert clips[0].float().std() > 1
    assert torch.equal(clips[0], clips[1])
    assert torch.equal(clips[0], clips[2])


def test_large_models_are_cut_into_indexed_shards(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "SHARD_BYTES", 30_000)
    folder = convert(tiny_checkpoint, tmp_path / "sharded", "diffusers").root / "transformer"
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size < 45_000 for shard in shards)
    assert bits_in(folder) == bits_in(tiny_checkpoint / "transformer")
    theirs = WanTransformer3DModel.from_pretrained(folder)
    assert bits(theirs.state_dict()) == bits_in(tiny_checkpoint / "transformer")


def test_the_progress_adds_up_to_all_bytes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    written: list[int] = []
    found = convert(tiny_checkpoint, tmp_path / "official", "official", on_bytes=written.append)
    assert sum(written) == sum(stored.num_bytes for part in found.components for stored in part.stored.values())


def test_comfyuis_sentence_piece_model_travels_along(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    (root / "tokenizer" / "spiece.model").write_bytes(b"\x00pieces\xff")
    comfy = convert(root, tmp_path / "comfy", "comfy").root
    shutil.rmtree(comfy / "tokenizer")
    file = comfy / "text_encoders" / "umt5_xxl.safetensors"
    assert bytes(load_file(file)["spiece_model"].tolist()) == b"\x00pieces\xff"
    back = convert(comfy, tmp_path / "back", "official").root
    assert (back / "google" / "umt5-xxl" / "spiece.model").read_bytes() == b"\x00pieces\xff"


def test_one_expert_is_told_by_option_and_lies_in_its_folder(tiny_checkpoint: Path, tmp_path: Path) -> None:
    comfy = convert(tiny_checkpoint, tmp_path / "comfy", "comfy").root
    shutil.copy(comfy / "latentloom.json", comfy / "diffusion_models")
    single = comfy / "diffusion_models" / "wan_micro.safetensors"
    low = convert(single, tmp_path / "low", "official", expert="low")
    assert (low.experts, (low.root / "low_noise_model" / "config.json").is_file()) == (("low",), True)
    high = convert(single, tmp_path / "pair", "official", expert="high").root
    shutil.copytree(low.root / "low_noise_model", high / "low_noise_model")
    pair = convert(high, tmp_path / "diffusers", "diffusers")
    assert pair.experts == ("high", "low")
    assert bits_in(pair.root / "transformer_2") == bits_in(tiny_checkpoint / "transformer")
    only = convert(pair.root, tmp_path / "only", "comfy", expert="low").root
    assert [file.name for file in (only / "diffusion_models").iterdir()] == ["wan_micro_low_noise.safetensors"]
    with pytest.raises(ConfigError, match="'middle'; choose high or low"):
        convert(pair.root, tmp_path / "no", "comfy", expert="middle")


def test_an_existing_target_is_kept_unless_told_otherwise(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = convert(tiny_checkpoint, tmp_path / "target", "comfy").root
    with pytest.raises(FileError, match="target exists; give another folder, or --overwrite"):
        convert(tiny_checkpoint, target, "official")
    assert checkpoints.recognise(target).layout == "comfy"
    convert(tiny_checkpoint, target, "official", overwrite=True)
    assert checkpoints.recognise(target).layout == "official"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


def test_a_folder_that_is_no_checkpoint_is_never_replaced(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    with pytest.raises(FileError, match="is no checkpoint, so it is not replaced"):
        convert(tiny_checkpoint, tmp_path / "thesis", "official", overwrite=True)
    with pytest.raises(FileError, match="holds the source"):
        convert(tiny_checkpoint, tiny_checkpoint, "official", overwrite=True)
    with pytest.raises(FileError, match="holds the source"):
        convert(tiny_checkpoint, tiny_checkpoint.parent, "official", overwrite=True)


@pytest.mark.parametrize("inside", ["transformer", "tokenizer/new"])
def test_a_target_inside_the_source_is_refused(tiny_checkpoint: Path, tmp_path: Path, inside: str) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    before = sorted(root.rglob("*"))
    with pytest.raises(FileError, match="lies inside the source"):
        convert(root, root / inside, "official", overwrite=True)
    assert sorted(root.rglob("*")) == before


def test_an_incomplete_source_leaves_nothing_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    file = root / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["blocks.1.attn2.norm_k.weight"]
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"1 keys missing \(blocks.1.attn2.norm_k.weight\)"):
        convert(root, tmp_path / "target", "official")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_interruption_leaves_the_old_target_and_no_rest(tiny_checkpoint: Path, tmp_path: Path) -> None:
    target = convert(tiny_checkpoint, tmp_path / "target", "comfy").root

    def interrupt(num_bytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tiny_checkpoint, target, "official", overwrite=True, on_bytes=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert checkpoints.recognise(target).layout == "comfy"


def test_the_command_converts_and_says_what_it_wrote(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", str(tiny_checkpoint), str(tmp_path / "out"), "--layout", "official"]
    assert run(arguments) == 0
    assert "transformer, text_encoder, vae in the official layout" in " ".join(capsys.readouterr().out.split())
    assert run(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*arguments, "--overwrite"]) == 0


def bits_in(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a folder's safetensors files, as type, shape and raw bytes."""
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        for key, entry in read_header(file).items():
            if key != "__metadata__":
                begin, end = entry["data_offsets"]
                found[key] = (entry["dtype"], entry["shape"], raw[start + begin : start + end])
    return found


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[str, list[int], bytes]]:
    names = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return {
        key: (names[tensor.dtype], list(tensor.shape), tensor.contiguous().view(torch.uint8).numpy().tobytes())
        for key, tensor in tensors.items()
    }


def config_of(folder: Path) -> dict[str, object]:
    return json.loads((folder / "config.json").read_text())
