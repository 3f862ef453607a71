"""A checkpoint is told by its header: full-size models are inspected here without one byte of weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentloom.cli.main import run
from latentloom.wan import checkpoints, facts
from latentloom.wan.facts import TransformerDims
from latentloom.wan.summary import inspect

ITEM_SIZES = {"F32": 4, "BF16": 2}


def test_a_sharded_full_size_5b_is_known_by_its_headers(tmp_path: Path) -> None:
    dims = facts.get("ti2v-5b").transformer
    assert dims is not None
    write_hollow_transformer(tmp_path, dims, dtype="F32", num_shards=3)
    summary = inspect(tmp_path)
    assert (summary.layout, summary.model, summary.title, summary.is_known) == (
        "official",
        "ti2v-5b",
        "Wan2.2-TI2V-5B",
        True,
    )
    assert summary.num_parameters == 4_999_787_712
    (model,) = summary.models
    assert model.dtypes == {"F32": 4_999_787_712}
    assert model.num_tensors == 30 * 27 + 15
    assert (model.dims["num_layers"], model.dims["num_attention_heads"], model.dims["ffn_dim"]) == (30, 24, 14336)
    assert len(model.files) == 3


def test_a_full_size_a14b_shows_both_experts(tmp_path: Path) -> None:
    dims = facts.get("t2v-a14b").transformer
    assert dims is not None
    for name in ("high_noise_model", "low_noise_model"):
        write_hollow_transformer(tmp_path / name, dims, dtype="BF16", num_shards=2)
    summary = inspect(tmp_path)
    assert (summary.model, summary.experts) == ("t2v-a14b", ("high", "low"))
    assert [f"{model.num_parameters / 1e9:.2f}" for model in summary.models] == ["14.29", "14.29"]
    found = checkpoints.recognise(tmp_path).facts
    assert found is not None
    assert found.boundary == 0.875


def test_the_1_3b_is_known_as_a_prefixed_comfyui_file(tmp_path: Path) -> None:
    dims = facts.get("t2v-1.3b").transformer
    assert dims is not None
    write_hollow_transformer(tmp_path, dims, dtype="BF16", num_shards=1, prefix="model.diffusion_model.")
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "wan.safetensors")
    summary = inspect(tmp_path / "wan.safetensors")
    assert (summary.layout, summary.title) == ("comfy", "Wan2.1-T2V-1.3B")


def test_one_file_of_a_pair_says_which_expert_it_is(tmp_path: Path) -> None:
    dims = facts.get("t2v-a14b").transformer
    assert dims is not None
    write_hollow_transformer(tmp_path, dims, dtype="BF16", num_shards=1)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(tmp_path / "Wan2_2-T2V-A14B_LOW_noise.safetensors")
    assert inspect(tmp_path / "Wan2_2-T2V-A14B_LOW_noise.safetensors").experts == ("low",)


def test_an_unlabelled_14b_generates_as_one_transformer(tmp_path: Path) -> None:
    dims = facts.get("t2v-a14b").transformer
    assert dims is not None
    write_hollow_transformer(tmp_path, dims, dtype="BF16", num_shards=1)
    found = checkpoints.recognise(tmp_path).facts
    assert found is not None
    assert (found.title, found.experts) == ("one transformer of Wan2.2-T2V-A14B", ())
    assert (found.boundary, found.guidance) == (None, 4.0)


def test_unknown_sizes_name_the_nearest_model(tmp_path: Path) -> None:
    write_hollow_transformer(tmp_path, TransformerDims(3072, 14336, 24, 28, 48, 48), dtype="F32", num_shards=1)
    summary = inspect(tmp_path)
    assert (summary.model, summary.is_known) == ("unknown", False)
    assert summary.title == "unknown, nearest Wan2.2-TI2V-5B"


def test_microwan_is_known_by_what_it_declares(tiny_checkpoint: Path) -> None:
    summary = inspect(tiny_checkpoint)
    assert (summary.model, summary.layout, summary.has_tokenizer) == ("micro", "diffusers", True)
    assert [model.role for model in summary.models] == ["transformer", "text_encoder", "vae"]


def test_the_command_prints_json_and_nothing_else(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "checkpoint", str(tiny_checkpoint), "--json", "-"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(inspect(tiny_checkpoint).as_dict()))


def test_the_command_prints_a_table(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", "checkpoint", str(tiny_checkpoint)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("MicroWan: diffusers layout")
    assert "19,832" in out


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert run(["inspect", "checkpoint", str(tmp_path / "model.safetensors")]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1


def test_inspection_needs_none_of_the_models_classes() -> None:
    code = "import sys, latentloom.wan.summary; print(sorted({'diffusers', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def write_hollow_transformer(
    folder: Path, dims: TransformerDims, dtype: str, num_shards: int, prefix: str = ""
) -> None:
    """Official safetensors files with full headers over a hole where the weights would be."""
    shapes = list(official_shapes(dims).items())
    folder.mkdir(exist_ok=True)
    for number in range(num_shards):
        header, end = {}, 0
        for key, shape in shapes[number::num_shards]:
            size = ITEM_SIZES[dtype]
            for length in shape:
                size *= length
            header[prefix + key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        encoded = json.dumps(header).encode()
        name = f"-{number + 1:05d}-of-{num_shards:05d}" if num_shards > 1 else ""
        with (folder / f"diffusion_pytorch_model{name}.safetensors").open("wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            file.truncate(8 + len(encoded) + end)


def official_shapes(dims: TransformerDims) -> dict[str, tuple[int, ...]]:
    d, f = dims.dim, dims.ffn_dim
    linears = {
        "text_embedding.0": (d, dims.text_dim),
        "text_embedding.2": (d, d),
        "time_embedding.0": (d, dims.freq_dim),
        "time_embedding.2": (d, d),
        "time_projection.1": (6 * d, d),
        "head.head": (4 * dims.out_channels, d),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (d, dims.in_channels, *dims.patch_size),
        "patch_embedding.bias": (d,),
        "head.modulation": (1, 2, d),
    }
    for block in (f"blocks.{index}" for index in range(dims.num_layers)):
        for attention in ("self_attn", "cross_attn"):
            linears |= {f"{block}.{attention}.{name}": (d, d) for name in "qkvo"}
            shapes |= {f"{block}.{attention}.norm_{name}.weight": (d,) for name in "qk"}
        linears |= {f"{block}.ffn.0": (f, d), f"{block}.ffn.2": (d, f)}
        shapes |= {f"{block}.norm3.weight": (d,), f"{block}.norm3.bias": (d,), f"{block}.modulation": (1, 6, d)}
    for name, (width, fan_in) in linears.items():
        shapes |= {f"{name}.weight": (width, fan_in), f"{name}.bias": (width,)}
    return shapes
