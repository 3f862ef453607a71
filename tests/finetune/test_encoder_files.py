"""Trained encoders as files: Wan's keys out, anyone's keys in, and nothing replaced by mistake."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoint import tiny_text_encoder
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.errors import CheckpointError, FileError
from latentloom.finetune.encoder_files import is_partial, load_text_encoder_file, save_text_encoder
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS


def encoder(seed: int) -> UMT5EncoderModel:
    torch.manual_seed(seed)
    return tiny_text_encoder()


@torch.no_grad()
def answer(model: UMT5EncoderModel) -> Tensor:
    return model(torch.tensor([[5, 9, 20, 1]])).last_hidden_state


def test_a_whole_encoder_is_written_in_wans_keys_and_comes_back(tmp_path: Path) -> None:
    trained = encoder(1)
    file = tmp_path / "text_encoder.safetensors"
    save_text_encoder(file, trained.state_dict(), partial=False)
    stored = load_file(file)
    assert stored.keys() == OFFICIAL
    assert torch.equal(
        stored["blocks.1.attn.q.weight"], trained.state_dict()[f"{BLOCK}.1.layer.0.SelfAttention.q.weight"]
    )
    for given in (file, tmp_path):
        model = encoder(2)
        replaced = load_text_encoder_file(model, given)
        assert len(replaced) == len(stored)
        assert torch.equal(answer(model), answer(trained))
        assert model.encoder.embed_tokens.weight is model.shared.weight


BLOCK = "encoder.block"
OFFICIAL = {"token_embedding.weight", "norm.weight"} | {
    f"blocks.{n}.{leaf}.weight"
    for n in range(2)
    for leaf in (
        *("norm1", "attn.q", "attn.k", "attn.v", "attn.o", "pos_embedding.embedding"),
        *("norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"),
    )
}


def test_a_partial_file_replaces_what_it_holds(tmp_path: Path) -> None:
    trained, model = encoder(1).state_dict(), encoder(2)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    upper = {name: weight for name, weight in trained.items() if f"{BLOCK}.1." in name}
    file = tmp_path / "text_encoder.safetensors"
    save_text_encoder(file, upper, partial=True)
    assert is_partial(file)
    assert load_text_encoder_file(model, file) == sorted(upper)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, upper.get(name, before[name]))


@pytest.mark.parametrize("style", ["transformers", "comfy", "bundle", "official pickle"])
def test_other_peoples_files_are_read(tmp_path: Path, style: str) -> None:
    trained = encoder(1)
    state = {name: weight.clone() for name, weight in trained.state_dict().items()}
    file = tmp_path / "encoder.safetensors"
    if style == "official pickle":
        del state["encoder.embed_tokens.weight"]
        file = tmp_path / "models_t5_umt5-xxl-enc-bf16.pth"
        torch.save({TEXT_ENCODER_KEYS.to_official(name): weight for name, weight in state.items()}, file)
    else:
        if style != "transformers":
            state["spiece_model"] = torch.arange(7, dtype=torch.uint8)
        prefix = "text_encoders.umt5xxl.transformer." if style == "bundle" else ""
        save_file({prefix + name: weight for name, weight in state.items()}, file)
    model = encoder(2)
    load_text_encoder_file(model, file)
    assert torch.equal(answer(model), answer(trained))


def test_values_take_the_dtype_of_the_encoder(tmp_path: Path) -> None:
    save_text_encoder(tmp_path / "text_encoder.safetensors", encoder(1).state_dict(), partial=False)
    model = encoder(2).bfloat16()
    load_text_encoder_file(model, tmp_path)
    assert torch.equal(model.shared.weight, encoder(1).shared.weight.bfloat16())


def wider() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=2))


def deeper() -> UMT5EncoderModel:
    return UMT5EncoderModel(UMT5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2))


def test_an_encoder_of_another_size_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    model = encoder(2)
    before = answer(model)
    for other, words in ((wider(), r"\[16, 32\] and this encoder's is \[16, 16\]"), (deeper(), "of 2 blocks lacks")):
        save_text_encoder(file, other.state_dict(), partial=False)
        with pytest.raises(CheckpointError, match=words):
            load_text_encoder_file(model, file)
        assert torch.equal(answer(model), before)


def test_a_file_that_lacks_tensors_and_does_not_say_so_is_refused(tmp_path: Path) -> None:
    state = encoder(1).state_dict()
    del state[f"{BLOCK}.1.layer.0.SelfAttention.q.weight"]
    save_text_encoder(tmp_path / "text_encoder.safetensors", state, partial=False)
    with pytest.raises(CheckpointError, match=r"lacks 1 of the encoder's 22 tensors, first encoder.block.1"):
        load_text_encoder_file(encoder(2), tmp_path)


def test_what_is_no_encoder_is_refused_by_its_key(tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"diffusion_model.blocks.0.cross_attn.k.lora_A.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(CheckpointError, match=r"'diffusion_model.blocks.0.cross_attn.k.lora_A.weight', which is no"):
        load_text_encoder_file(encoder(2), file)
    with pytest.raises(FileError, match="does not exist"):
        load_text_encoder_file(encoder(2), tmp_path)
