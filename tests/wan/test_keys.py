"""Key rules against the official names, written out here, and against the published list of the 5B's keys."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from accelerate import init_empty_weights
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.wan.key_map import KeyMap
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS, text_encoder_config
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, transformer_config
from latentloom.wan.keys_vae import vae_config, vae_keys, vae_keys_for

Shapes = dict[str, tuple[int, ...]]

ATTENTION = [f"{name}.{leaf}" for name in "qkvo" for leaf in ("weight", "bias")] + ["norm_q.weight", "norm_k.weight"]
OFFICIAL_BLOCK = [
    *[f"self_attn.{name}" for name in ATTENTION],
    *[f"cross_attn.{name}" for name in ATTENTION],
    *["norm3.weight", "norm3.bias", "ffn.0.weight", "ffn.0.bias", "ffn.2.weight", "ffn.2.bias", "modulation"],
]
RESIDUAL = ["residual.0.gamma", "residual.2.weight", "residual.2.bias"]
RESIDUAL += ["residual.3.gamma", "residual.6.weight", "residual.6.bias"]
VAE_ENDS = [
    *["encoder.conv1", "encoder.head.2", "decoder.conv1", "decoder.head.2", "conv1", "conv2"],
    *[f"{side}.middle.1.{name}" for side in ("encoder", "decoder") for name in ("to_qkv", "proj")],
]
VAE_GAMMAS = [f"{side}.{name}.gamma" for side in ("encoder", "decoder") for name in ("head.0", "middle.1.norm")]
WAN21_VAE: dict[str, Any] = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
WAN22_VAE: dict[str, Any] = {
    **WAN21_VAE,
    "decoder_base_dim": 8,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
}
MICRO_VAE: dict[str, Any] = {
    "base_dim": 24,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "z_dim": 16,
    "is_residual": True,
}
MICRO_VAE |= {"patch_size": 2, "in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8}
MICRO_VAE |= {"temperal_downsample": [True, True]}


def test_the_5b_has_the_published_keys_and_shapes(shared: Path) -> None:
    with (shared / "data" / "wan22_ti2v_5b_keys.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    published = {row["key"]: tuple(int(size) for size in row["shape"].split("x")) for row in rows}
    with init_empty_weights(include_buffers=False):
        model = WanTransformer3DModel(
            num_attention_heads=24, in_channels=48, out_channels=48, ffn_dim=14336, num_layers=30
        )
    ours = official_shapes(TRANSFORMER_KEYS, shapes_of(model))
    assert len(published) == 810
    assert {key: shape for key, shape in ours.items() if key.startswith("blocks.")} == published


def test_the_transformer_has_the_official_names() -> None:
    with init_empty_weights():
        model = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, num_layers=2, ffn_dim=32)
    outside = ["patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2"]
    outside += ["time_projection.1", "head.head"]
    expected = {f"{name}.{leaf}" for name in outside for leaf in ("weight", "bias")} | {"head.modulation"}
    expected |= {f"blocks.{block}.{name}" for block in range(2) for name in OFFICIAL_BLOCK}
    official = official_shapes(TRANSFORMER_KEYS, shapes_of(model))
    assert set(official) == expected
    assert official["blocks.0.modulation"] == (1, 6, 24)
    assert official["head.modulation"] == (1, 2, 24)
    assert official["head.head.weight"] == (64, 24)


def test_the_norm_before_cross_attention_is_the_third_officially_and_the_second_in_diffusers() -> None:
    assert TRANSFORMER_KEYS.from_official("blocks.7.norm3.weight") == "blocks.7.norm2.weight"
    assert TRANSFORMER_KEYS.from_official("blocks.7.norm2.weight") is None
    assert TRANSFORMER_KEYS.to_official("blocks.7.norm3.weight") is None


def test_the_text_encoder_has_the_official_names() -> None:
    with init_empty_weights():
        model = UMT5EncoderModel(UMT5Config(vocab_size=50, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_heads=4))
    shapes = shapes_of(model)
    del shapes["encoder.embed_tokens.weight"]
    names = ["norm1", "attn.q", "attn.k", "attn.v", "attn.o", "norm2", "ffn.gate.0", "ffn.fc1", "ffn.fc2"]
    names += ["pos_embedding.embedding"]
    expected = {f"blocks.{block}.{name}.weight" for block in range(2) for name in names}
    official = official_shapes(TEXT_ENCODER_KEYS, shapes)
    assert set(official) == expected | {"token_embedding.weight", "norm.weight"}
    assert official["blocks.1.pos_embedding.embedding.weight"] == (32, 4)
    assert official["blocks.1.ffn.gate.0.weight"] == (24, 16)
    assert official["blocks.1.ffn.fc2.weight"] == (16, 24)


def test_the_wan21_vae_has_the_official_names() -> None:
    """Wan 2.1 numbers residual blocks and resamplers in one list per side."""
    official = official_shapes(vae_keys(4, 2, False), vae_shapes(WAN21_VAE))
    stages = {"encoder.downsamples": [0, 1, 3, 4, 6, 7, 9, 10], "decoder.upsamples": range(15)}
    residual = [f"{side}.{i}" for side, indices in stages.items() for i in indices if "en" in side or i % 4 < 3]
    resample = [f"encoder.downsamples.{i}" for i in (2, 5, 8)] + [f"decoder.upsamples.{i}" for i in (3, 7, 11)]
    convolutions = ["encoder.downsamples.5.time_conv", "encoder.downsamples.8.time_conv"]
    convolutions += ["decoder.upsamples.3.time_conv", "decoder.upsamples.7.time_conv"]
    convolutions += ["encoder.downsamples.3.shortcut", "encoder.downsamples.6.shortcut", "decoder.upsamples.4.shortcut"]
    assert set(official) == vae_names(residual, resample, convolutions)
    assert official["decoder.upsamples.3.time_conv.weight"] == (32, 16, 3, 1, 1)
    assert official["decoder.upsamples.4.shortcut.weight"] == (16, 8, 1, 1, 1)


def test_the_wan22_vae_has_the_official_names() -> None:
    """Wan 2.2 nests a list per stage, which ends with the resampler."""
    official = official_shapes(vae_keys(4, 2, True), vae_shapes(WAN22_VAE))
    down, up = "encoder.downsamples.{}.downsamples.{}", "decoder.upsamples.{}.upsamples.{}"
    residual = [down.format(stage, i) for stage in range(4) for i in range(2)]
    residual += [up.format(stage, i) for stage in range(4) for i in range(3)]
    resample = [down.format(stage, 2) for stage in range(3)] + [up.format(stage, 3) for stage in range(3)]
    convolutions = [f"{down.format(stage, 2)}.time_conv" for stage in (1, 2)]
    convolutions += [f"{up.format(stage, 3)}.time_conv" for stage in (0, 1)]
    convolutions += [f"{down.format(stage, 0)}.shortcut" for stage in (1, 2)]
    convolutions += [f"{up.format(stage, 0)}.shortcut" for stage in (2, 3)]
    assert set(official) == vae_names(residual, resample, convolutions)
    assert official["encoder.conv1.weight"] == (4, 12, 3, 3, 3)
    assert official["decoder.upsamples.0.upsamples.3.time_conv.weight"] == (64, 32, 3, 1, 1)
    assert official["decoder.upsamples.3.upsamples.0.shortcut.weight"] == (8, 16, 1, 1, 1)


@pytest.mark.parametrize("config", [WAN21_VAE, WAN22_VAE, MICRO_VAE], ids=["wan2.1", "wan2.2", "micro"])
def test_a_vaes_rules_are_found_from_its_keys_in_either_layout(config: dict[str, Any]) -> None:
    shapes = vae_shapes(config)
    official = official_shapes(vae_keys_for(shapes), shapes)
    back = {vae_keys_for(official).from_official(key): shape for key, shape in official.items()}
    assert back == shapes


@pytest.mark.parametrize("config", [WAN21_VAE, WAN22_VAE, MICRO_VAE], ids=["wan2.1", "wan2.2", "micro"])
def test_a_vaes_config_is_read_off_its_shapes(config: dict[str, Any]) -> None:
    derived = vae_config(vae_shapes(config))
    assert {name: derived[name] for name in config} == config
    assert vae_shapes(derived) == vae_shapes(config)


def test_the_wan22_vae_is_known_to_compress_sixteenfold_and_to_normalise_48_channels() -> None:
    derived = vae_config(vae_shapes({**WAN22_VAE, "z_dim": 48}))
    assert (derived["scale_factor_spatial"], derived["scale_factor_temporal"], derived["patch_size"]) == (16, 4, 2)
    assert (derived["latents_mean"][:2], derived["latents_std"][-1]) == ([-0.2289, -0.0052], 0.7744)
    assert len(derived["latents_mean"]) == len(derived["latents_std"]) == 48


def test_a_transformers_config_is_read_off_its_shapes() -> None:
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "in_channels": 8,
        "out_channels": 4,
        "text_dim": 24,
    }
    config |= {"freq_dim": 32, "ffn_dim": 40, "num_layers": 3, "patch_size": (1, 2, 2)}
    with init_empty_weights():
        derived = transformer_config(shapes_of(WanTransformer3DModel(**config)))
    assert {name: derived[name] for name in config} == config


def test_a_text_encoders_config_is_read_off_its_shapes() -> None:
    config: dict[str, Any] = {"vocab_size": 50, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 3, "num_heads": 4}
    with init_empty_weights():
        derived = text_encoder_config(shapes_of(UMT5EncoderModel(UMT5Config(**config))))
    assert {name: derived[name] for name in config} == config


@given(
    st.sampled_from([TRANSFORMER_KEYS, TEXT_ENCODER_KEYS, vae_keys(4, 2, False), vae_keys(4, 2, True)]),
    st.integers(0, 10**6),
    st.integers(0, 10**4),
)
def test_each_rule_read_back_gives_the_key_it_was_given(keys: KeyMap, pick: int, block: int) -> None:
    official, ours = keys.rules[pick % len(keys.rules)]
    values = {"leaf": "weight", "n": block, "qk": "k", "qkv": "v", "qkvo": "o", "side": "decoder"}
    official, ours = official.format(**values), ours.format(**values)
    assert keys.to_official(ours) == official
    assert keys.from_official(official) == ours


@given(st.text(max_size=60))
def test_a_strange_key_has_no_name(key: str) -> None:
    assert TRANSFORMER_KEYS.from_official(key + "?") is None
    assert TRANSFORMER_KEYS.to_official("x." + key) is None


def shapes_of(model: nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def vae_shapes(config: dict[str, Any]) -> Shapes:
    with init_empty_weights():
        return shapes_of(AutoencoderKLWan(**config))


def official_shapes(keys: KeyMap, shapes: Shapes) -> Shapes:
    renamed = {keys.to_official(key): shape for key, shape in shapes.items()}
    assert None not in renamed
    assert len(renamed) == len(shapes)
    return {key: shape for key, shape in renamed.items() if key is not None}


def vae_names(residual: Iterable[str], resample: Iterable[str], convolutions: Iterable[str]) -> set[str]:
    blocks = [*residual, *[f"{side}.middle.{i}" for side in ("encoder", "decoder") for i in (0, 2)]]
    with_bias = [*[f"{path}.resample.1" for path in resample], *convolutions, *VAE_ENDS]
    names = {f"{path}.{name}" for path in blocks for name in RESIDUAL} | set(VAE_GAMMAS)
    return names | {f"{path}.{leaf}" for path in with_bias for leaf in ("weight", "bias")}
