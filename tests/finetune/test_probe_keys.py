"""Files are told by their headers, whole or not; every key is listed by block, its prefix taken off."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from latentloom.errors import CorruptFileError, FileError
from latentloom.finetune.probes.keys import KeyGroup, scan_keys
from latentloom.finetune.probes.keys_report import spans, write_keys_report
from latentloom.micro import default_checkpoint
from latentloom.wan import facts
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS

ITEM_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F4": 0.5}
Shapes = Mapping[str, tuple[int, ...]]


def write_hollow(path: Path, shapes: Shapes, dtype: str = "BF16", odd: Mapping[str, str] | None = None) -> None:
    """A safetensors file with a full header over a hole where the weights would be."""
    header, end = {}, 0
    for key, shape in shapes.items():
        its_dtype = (odd or {}).get(key, dtype)
        size = int(math.prod(shape) * ITEM_SIZES[its_dtype])
        header[key] = {"dtype": its_dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    encoded = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


def official_shapes(model: str, num_layers: int | None = None) -> dict[str, tuple[int, ...]]:
    """The shapes of a published transformer, as its class in diffusers builds them, under official keys."""
    dims = facts.get(model).transformer
    assert dims is not None
    with init_empty_weights():
        built = WanTransformer3DModel(
            num_attention_heads=dims.num_heads,
            attention_head_dim=dims.dim // dims.num_heads,
            in_channels=dims.in_channels,
            out_channels=dims.out_channels,
            ffn_dim=dims.ffn_dim,
            num_layers=num_layers or dims.num_layers,
        )
    return {str(TRANSFORMER_KEYS.to_official(name)): tuple(each.shape) for name, each in built.state_dict().items()}


def lora_shapes(blocks: range, layers: tuple[str, ...], width: int, prefix: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in blocks:
        for layer in layers:
            shapes[f"{prefix}blocks.{block}.{layer}.lora_A.weight"] = (16, width)
            shapes[f"{prefix}blocks.{block}.{layer}.lora_B.weight"] = (width, 16)
    return shapes


def only(groups: list[KeyGroup]) -> KeyGroup:
    (group,) = groups
    return group


def test_the_published_5b_keys_come_back_from_prefixed_shards(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "data" / "wan22_ti2v_5b_keys.csv").read_text().splitlines()
    published = {
        (row["key"], row["shape"], row["dtype"])
        for row in csv.DictReader(line for line in lines if not line.startswith("#"))
    }
    shapes = {key: tuple(map(int, shape.split("x"))) for key, shape, _ in published}
    ends = {key: shape for key, shape in official_shapes("ti2v-5b").items() if not key.startswith("blocks.")}
    keyed = [(f"model.diffusion_model.{key}", shape) for key, shape in {**shapes, **ends}.items()]
    for number in range(3):
        write_hollow(tmp_path / f"wan-0000{number + 1}-of-00003.safetensors", dict(keyed[number::3]), "F32")
    group = only(scan_keys(tmp_path))
    assert (group.kind.title, group.kind.strangers, group.kind.notes) == ("Wan2.2-TI2V-5B", (), ())
    assert (group.blocks, group.odd_blocks()) == (list(range(30)), [])
    write_keys_report(tmp_path, [group], tmp_path / "report")
    written = csv.DictReader((tmp_path / "report" / "keys.csv").read_text().splitlines())
    assert {(row["key"], row["shape"], row["dtype"]) for row in written if row["block"]} == published


@pytest.mark.parametrize(
    ("model", "folder", "title"),
    [
        ("ti2v-5b", "model", "Wan2.2-TI2V-5B"),
        ("t2v-1.3b", "model", "Wan2.1-T2V-1.3B"),
        ("t2v-a14b", "high_noise_model", "high-noise expert of Wan2.2-T2V-A14B"),
        ("t2v-a14b", "low_noise_model", "low-noise expert of Wan2.2-T2V-A14B"),
        ("t2v-a14b", "model", "one transformer of Wan2.2-T2V-A14B"),
    ],
)
def test_sizes_and_names_tell_the_models_apart(tmp_path: Path, model: str, folder: str, title: str) -> None:
    write_hollow(tmp_path / folder / "diffusion_pytorch_model.safetensors", official_shapes(model))
    group = only(scan_keys(tmp_path))
    assert (group.kind.kind, group.kind.naming, group.kind.title) == ("transformer", "official", title)


def test_one_shard_is_a_part_of_its_model(tmp_path: Path) -> None:
    shard = dict(list(official_shapes("ti2v-5b", num_layers=3).items())[20:60])
    write_hollow(tmp_path / "diffusion_pytorch_model-00002-of-00003.safetensors", shard)
    group = only(scan_keys(tmp_path))
    assert group.kind.title == "part of Wan2.2-TI2V-5B"
    assert group.kind.notes[0] == "some shards are missing"


def test_an_adapter_tells_its_rank_targets_and_model(tmp_path: Path) -> None:
    shapes = lora_shapes(range(20, 30), ("cross_attn.k", "cross_attn.v"), 5120, "diffusion_model.")
    write_hollow(tmp_path / "high_noise" / "adapter_model.safetensors", shapes)
    group = only(scan_keys(tmp_path))
    assert group.kind.title == "LoRA of rank 16 for Wan2.2-T2V-A14B, high-noise expert"
    assert group.kind.notes == ("20 targets: cross_attn.k x 10, cross_attn.v x 10",)
    assert group.blocks == list(range(20, 30))


def test_an_adapter_of_self_attention_is_remarked_on(tmp_path: Path) -> None:
    write_hollow(tmp_path / "a.safetensors", lora_shapes(range(2), ("attn1.to_q",), 3072, "transformer."))
    assert any("self-attention" in note for note in only(scan_keys(tmp_path)).kind.notes)


def test_weights_of_another_family_are_listed_all_the_same(tmp_path: Path) -> None:
    shapes = {"model.layers.0.mlp.up.weight": (4, 8), "model.layers.10.mlp.up.weight": (4, 8), "lm_head.weight": (9, 4)}
    write_hollow(tmp_path / "llm.safetensors", shapes, odd={"lm_head.weight": "F4"})
    group = only(scan_keys(tmp_path / "llm.safetensors"))
    assert (group.kind.kind, group.kind.title) == ("unknown", "no Wan model: model (2), lm_head (1)")
    assert [(row.key, row.block) for row in group.rows] == [
        ("lm_head.weight", None),
        ("model.layers.0.mlp.up.weight", 0),
        ("model.layers.10.mlp.up.weight", 10),
    ]
    assert group.num_parameters == 9 * 4 + 2 * 4 * 8


def test_a_bundle_falls_apart_into_its_models(tmp_path: Path) -> None:
    dit = {f"model.diffusion_model.{key}": shape for key, shape in official_shapes("t2v-1.3b", 2).items()}
    encoder = {f"text_encoders.umt5xxl.transformer.encoder.block.{n}.layer.0.layer_norm.weight": (8,) for n in (0, 1)}
    write_hollow(tmp_path / "bundle.safetensors", {**dit, **encoder})
    found = {group.prefix: group.kind.kind for group in scan_keys(tmp_path / "bundle.safetensors")}
    assert found == {"model.diffusion_model.": "transformer", "text_encoders.umt5xxl.transformer.": "text_encoder"}


def test_a_block_of_another_type_or_shape_is_named(tmp_path: Path) -> None:
    shapes = official_shapes("t2v-1.3b", num_layers=12)
    shapes["blocks.11.ffn.0.weight"] = (10, 1536)
    write_hollow(tmp_path / "m.safetensors", shapes, odd={"blocks.3.self_attn.q.weight": "F32"})
    group = only(scan_keys(tmp_path))
    assert group.odd_blocks() == [3, 11]
    assert [row.block for row in group.rows if row.block is not None] == sorted(row.block or 0 for row in group.rows)[
        15:
    ]


def test_a_pickle_given_by_name_is_listed(tmp_path: Path) -> None:
    import torch

    torch.save({"blocks.0.attn.q.weight": torch.zeros(4, 4), "norm.weight": torch.zeros(4)}, tmp_path / "t5.pth")
    assert only(scan_keys(tmp_path / "t5.pth")).kind.title == "part of a UMT5 encoder"


def test_microwan_is_known_as_a_whole(tmp_path: Path) -> None:
    groups = scan_keys(default_checkpoint())
    assert [group.kind.kind for group in groups] == ["text_encoder", "transformer", "vae"]
    assert not any(group.kind.strangers for group in groups)
    _, summary = write_keys_report(default_checkpoint(), groups, tmp_path)
    assert summary["results"]["checkpoint"] == "MicroWan, diffusers layout"


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    for name in ("a.safetensors", ".cache/b.safetensors", ".half.partial.safetensors"):
        write_hollow(tmp_path / name, {"x": (1,)})
    assert only(scan_keys(tmp_path)).name == "a"


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [("w.safetensors", b"\xff" * 99, CorruptFileError), ("w.txt", b"words", FileError), (None, None, FileError)],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, name: str | None, content: bytes | None, error: type[Exception]
) -> None:
    path = tmp_path / (name or "missing.safetensors")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error):
        scan_keys(path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="holds no weight file"):
        scan_keys(tmp_path)


def test_headers_are_scanned_without_torch(tmp_path: Path) -> None:
    write_hollow(tmp_path / "m.safetensors", official_shapes("t2v-1.3b", num_layers=1))
    code = (
        "import sys; from pathlib import Path; from latentloom.finetune.probes.keys import scan_keys; "
        f"print(scan_keys(Path({str(tmp_path)!r}))[0].kind.kind, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["transformer", "False"]


def test_spans_are_short() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert spans([]) == ""
