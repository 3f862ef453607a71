"""Fingerprints of stored models: those of the loaded ones, whatever the layout and the dtype."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentloom.wan import checkpoints
from latentloom.wan.checkpoint_fingerprints import fingerprint_text_encoder, fingerprint_transformer, fingerprint_vae
from latentloom.wan.convert import convert
from latentloom.wan.fingerprint import fingerprint
from latentloom.wan.text_encoder import WanTextEncoder


@pytest.fixture(scope="module")
def official(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("official") / "checkpoint"
    convert(tiny_checkpoint, target, "official")
    return target


def test_the_encoder_has_the_fingerprint_that_it_has_when_loaded(tiny_checkpoint: Path):
    model = checkpoints.load_text_encoder(tiny_checkpoint, dtype=torch.bfloat16)
    encoder = WanTextEncoder(model, checkpoints.load_tokenizer(tiny_checkpoint))
    assert fingerprint_text_encoder(tiny_checkpoint) == encoder.fingerprint()


def test_another_layout_keeps_the_fingerprints(tiny_checkpoint: Path, official: Path):
    assert fingerprint_vae(official) == fingerprint_vae(tiny_checkpoint)
    assert fingerprint_text_encoder(official) == fingerprint_text_encoder(tiny_checkpoint)
    for expert in (None,) if len(checkpoints.recognise(official).experts) < 2 else ("high", "low"):
        assert fingerprint_transformer(official, expert) == fingerprint_transformer(tiny_checkpoint, expert)


def test_a_trained_vae_and_other_statistics_have_other_fingerprints(tiny_checkpoint: Path, tmp_path: Path):
    before = fingerprint_vae(tiny_checkpoint)
    folder = tmp_path / "vae"
    folder.mkdir()
    for file in (tiny_checkpoint / "vae").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("-0.2", "-0.3"))
    assert fingerprint_vae(folder) != before

    (folder / "config.json").write_text(config)
    assert fingerprint_vae(folder) == before
    weights = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["encoder.conv_in.bias"] = tensors["encoder.conv_in.bias"] + 0.01
    save_file(tensors, weights)
    assert fingerprint_vae(folder) != before


def test_order_does_not_matter_and_names_shapes_and_settings_do():
    weights = {"a": torch.ones(2, 3), "b": torch.zeros(4)}
    digits = fingerprint([{"x": 1}], weights.items())
    assert fingerprint([{"x": 1}], reversed(weights.items())) == digits
    assert fingerprint([{"x": 2}], weights.items()) != digits
    assert fingerprint([{"x": 1}], {"c": weights["a"], "b": weights["b"]}.items()) != digits
    assert fingerprint([{"x": 1}], {"a": torch.ones(3, 2), "b": weights["b"]}.items()) != digits
