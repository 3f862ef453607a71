"""Adapters as files: what is written, what is read of others', and what merging does."""

import json
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from finetune.trained_adapter import RANK, answer, fresh, save, train
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.errors import CheckpointError, FileError
from latentloom.finetune import adapter_files
from latentloom.finetune.adapter_files import (
    adapter_file,
    applied_adapter,
    expert_in_name,
    merge_adapter,
    read_adapter,
)
from latentloom.finetune.lora import diffusers_name
from latentloom.wan.offload import store_in_fp8

CROSS = ("cross_attn.k", "cross_attn.v")
ROUNDING = 2e-6  # of float32, between W + B A and W x + B (A x), on outputs of about 1


def test_the_file_has_the_documents_keys_and_pefts_config_beside_it(tmp_path: Path) -> None:
    _, state = train(CROSS, (1, 1))
    file = save(tmp_path / "epoch1", state)
    assert file == tmp_path / "epoch1" / "adapter_model.safetensors"
    shapes = {key: list(tensor.shape) for key, tensor in load_file(file).items()}
    assert shapes == {
        "diffusion_model.blocks.1.cross_attn.k.lora_A.weight": [RANK, 24],
        "diffusion_model.blocks.1.cross_attn.k.lora_B.weight": [24, RANK],
        "diffusion_model.blocks.1.cross_attn.v.lora_A.weight": [RANK, 24],
        "diffusion_model.blocks.1.cross_attn.v.lora_B.weight": [24, RANK],
    }
    config = json.loads((tmp_path / "epoch1" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", RANK, RANK, 0.1)
    assert {"blocks.1.attn2.to_k", "blocks.1.cross_attn.k"} <= set(config["target_modules"])


def test_an_expert_has_a_folder_and_a_second_name(tmp_path: Path) -> None:
    _, state = train(CROSS)
    save(tmp_path, state, expert="high")
    # writing over an earlier save must give both names the new content
    file = save(tmp_path, {name: tensor + 1 for name, tensor in state.items()}, expert="high")
    again = tmp_path / "adapter_model_high_noise.safetensors"
    assert file == tmp_path / "high_noise" / "adapter_model.safetensors"
    assert again.read_bytes() == file.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [again.name, "high_noise"]
    assert [expert_in_name(path) for path in (file, file.parent, again, tmp_path)] == ["high", "high", "high", None]
    with pytest.raises(FileError, match="give high_noise/ in it"):
        adapter_file(tmp_path)


def test_a_copy_is_written_where_links_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    _, state = train(CROSS)
    file = save(tmp_path, state, expert="low")
    assert (tmp_path / "adapter_model_low_noise.safetensors").read_bytes() == file.read_bytes()


def test_a_failed_write_leaves_the_last_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, state = train(CROSS)
    before = save(tmp_path, state).read_bytes()

    def fail(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(adapter_files, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save(tmp_path, state)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


def rewritten(state: dict[str, Tensor], style: str, parts: str, alpha: float | None) -> dict[str, Tensor]:
    """An adapter in other people's keys."""
    a, b = {"peft": ("lora_A", "lora_B"), "kohya": ("lora_down", "lora_up"), "named": ("lora_A.default",) * 2}[parts]
    b = "lora_B.default" if parts == "named" else b
    out = {}
    for name, tensor in state.items():
        layer, part, _ = name.rsplit(".", 2)
        official = adapter_files.official_name(layer)
        base = {
            "comfy": f"diffusion_model.{official}",
            "bundle": f"model.diffusion_model.{official}",
            "diffusers": f"transformer.{layer}",
            "peft on diffusers": f"base_model.model.{layer}",
            "peft on official": f"base_model.model.{official}",
            "bare": official,
        }[style]
        out[f"{base}.{a if part == 'lora_A' else b}.weight"] = tensor
        if alpha is not None:
            out[f"{base}.alpha"] = torch.tensor(alpha)
    return out


@given(
    style=st.sampled_from(["comfy", "bundle", "diffusers", "peft on diffusers", "peft on official", "bare"]),
    parts=st.sampled_from(["peft", "kohya", "named"]),
    alpha=st.sampled_from([None, 4.0, 1.0, 6.0]),
)
def test_any_style_of_keys_reads_as_the_same_change(
    tmp_path_factory: pytest.TempPathFactory, style: str, parts: str, alpha: float | None
) -> None:
    file = tmp_path_factory.mktemp("styles") / "lora.safetensors"
    save_file(rewritten(STATE, style, parts, alpha), file)
    pairs = read_adapter(file)
    scale = 1.0 if alpha is None else alpha / RANK
    assert len(pairs) == len(STATE) // 2
    for official, (down, up) in pairs.items():
        name = diffusers_name(official)
        assert torch.equal(down, STATE[f"{name}.lora_A.weight"])
        assert torch.allclose(up, STATE[f"{name}.lora_B.weight"] * scale)


STATE = train(("cross_attn.k", "self_attn.o", "ffn.0", "ffn.2"))[1]


def test_pefts_own_config_scales_pefts_own_keys_and_no_others(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    sizes = {}
    for style in ("peft on diffusers", "comfy"):
        save_file(rewritten(STATE, style, "peft", None), tmp_path / "adapter_model.safetensors")
        sizes[style] = read_adapter(tmp_path)["blocks.0.ffn.0"][1]
    assert torch.equal(sizes["peft on diffusers"], 2 * sizes["comfy"])
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    save_file(rewritten(STATE, "peft on diffusers", "peft", None), tmp_path / "adapter_model.safetensors")
    assert torch.allclose(read_adapter(tmp_path)["blocks.0.ffn.0"][1], 2 * RANK**0.5 * sizes["comfy"])


def broken(change: str) -> dict[str, Tensor]:
    state = rewritten(STATE, "comfy", "peft", None)
    key = "diffusion_model.blocks.1.ffn.0.lora_A.weight"
    if change == "half":
        del state[key]
    if change == "ranks":
        state[key] = torch.zeros(RANK + 1, 24)
    if change == "key":
        state["diffusion_model.blocks.1.ffn.0.diff_b"] = torch.zeros(32)
    if change == "layer":
        state["diffusion_model.blocks.1.ffn.7.lora_A.weight"] = torch.zeros(RANK, 24)
    return {} if change == "empty" else state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("half", "blocks.1.ffn.0 lacks its lora_A"),
        ("ranks", r"blocks.1.ffn.0 has A \[5, 24\] and B \[32, 4\]"),
        ("key", "'diffusion_model.blocks.1.ffn.0.diff_b' is no part"),
        ("layer", "blocks.1.ffn.7"),
        ("empty", "holds no tensors"),
    ],
)
def test_what_is_no_adapter_is_refused_by_name(tmp_path: Path, change: str, words: str) -> None:
    file = tmp_path / "lora.safetensors"
    save_file(broken(change), file)
    with pytest.raises(CheckpointError, match=words) as error:
        read_adapter(file)
    assert str(file) in str(error.value)


def test_merged_is_what_was_trained(tmp_path: Path) -> None:
    trained, state = train((*CROSS, "ffn.2"))
    transformer = fresh()
    before = answer(transformer)
    assert (trained - before).abs().max() > 0.01
    merge_adapter(transformer, save(tmp_path, state))
    assert (answer(transformer) - trained).abs().max() < ROUNDING


def test_an_applied_adapter_goes_without_a_trace_whatever_happens(tmp_path: Path) -> None:
    _, state = train(CROSS)
    transformer = fresh().bfloat16()
    before = {name: weight.clone() for name, weight in transformer.state_dict().items()}
    file = save(tmp_path, state)

    def interrupted() -> None:
        with applied_adapter(transformer, file, 3.0):
            changed = transformer.state_dict()
            assert {name for name in before if not torch.equal(before[name], changed[name])} == {
                f"blocks.{n}.attn2.to_{part}.weight" for n in range(2) for part in "kv"
            }
            assert changed["blocks.0.attn2.to_k.weight"].dtype == torch.bfloat16
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(before[name], weight) for name, weight in transformer.state_dict().items())


def test_strength_scales_the_change() -> None:
    _, state = train(("ffn.0",))
    pairs = {"blocks.0.ffn.0": (state["blocks.0.ffn.net.0.proj.lora_A.weight"], torch.ones(32, RANK))}
    weight = fresh().get_parameter("blocks.0.ffn.net.0.proj.weight").detach().clone()
    for strength in (0.0, 0.5, -2.0):
        transformer = fresh()
        merge_adapter(transformer, pairs, strength)
        change = transformer.get_parameter("blocks.0.ffn.net.0.proj.weight") - weight
        assert torch.allclose(change, strength * (torch.ones(32, RANK) @ pairs["blocks.0.ffn.0"][0]), atol=1e-6)


def test_weights_in_eight_bits_are_left_alone() -> None:
    transformer = fresh()
    store_in_fp8(transformer, torch.float32)
    with pytest.raises(TypeError, match=r"blocks.0.ffn.net.0.proj is stored as torch.float8_e4m3fn"):
        merge_adapter(transformer, {"blocks.0.ffn.0": (torch.zeros(RANK, 24), torch.zeros(32, RANK))})


def test_an_adapter_of_another_model_names_both_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a14b.safetensors"
    state = rewritten(STATE, "comfy", "peft", None)  # the first layers fit, the last one does not
    state["diffusion_model.blocks.1.cross_attn.v.lora_A.weight"] = torch.zeros(RANK, 5120)
    state["diffusion_model.blocks.1.cross_attn.v.lora_B.weight"] = torch.zeros(5120, RANK)
    save_file(state, file)
    transformer = fresh()
    before = answer(transformer)
    with pytest.raises(CheckpointError, match=r"\[5120, 5120\].*is \[24, 24\] there.*2 blocks of 24 channels"):
        merge_adapter(transformer, file)
    assert torch.equal(answer(transformer), before)


def test_real_sizes_are_called_by_their_names(tmp_path: Path) -> None:
    with torch.device("meta"):
        transformer = WanTransformer3DModel(
            num_layers=30, num_attention_heads=24, ffn_dim=14336, in_channels=48, out_channels=48
        )
    pairs = {f"blocks.{n}.cross_attn.k": (torch.zeros(2, 5120), torch.zeros(5120, 2)) for n in (0, 39)}
    with pytest.raises(CheckpointError, match=r"made for Wan2.2-T2V-A14B.*in Wan2.2-TI2V-5B \(30 blocks of 3072"):
        merge_adapter(transformer, pairs)
    pairs = {"blocks.39.cross_attn.k": (torch.zeros(2, 3072), torch.zeros(3072, 2))}
    with pytest.raises(CheckpointError, match=r"blocks.39.cross_attn.k .* has no such layer in Wan2.2-TI2V-5B"):
        merge_adapter(transformer, pairs)
