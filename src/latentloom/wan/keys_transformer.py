"""The diffusion transformer's keys in the official layout and in diffusers, and its sizes read off its shapes.

Source: wan/modules/model.py of the official repository; diffusers' WanTransformer3DModel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from latentloom.errors import CheckpointError
from latentloom.wan.facts import KNOWN, TransformerDims
from latentloom.wan.key_map import KeyMap, Rule, prefixed

Shapes = Mapping[str, tuple[int, ...]]


def _attention(official: str, ours: str) -> list[Rule]:
    inner = [
        ("{qkv}.{leaf}", "to_{qkv}.{leaf}"),
        ("o.{leaf}", "to_out.0.{leaf}"),
        ("norm_{qk}.{leaf}", "norm_{qk}.{leaf}"),
    ]
    return prefixed(official, ours, inner)


TRANSFORMER_KEYS = KeyMap(
    (
        ("patch_embedding.{leaf}", "patch_embedding.{leaf}"),
        ("text_embedding.0.{leaf}", "condition_embedder.text_embedder.linear_1.{leaf}"),
        ("text_embedding.2.{leaf}", "condition_embedder.text_embedder.linear_2.{leaf}"),
        ("time_embedding.0.{leaf}", "condition_embedder.time_embedder.linear_1.{leaf}"),
        ("time_embedding.2.{leaf}", "condition_embedder.time_embedder.linear_2.{leaf}"),
        ("time_projection.1.{leaf}", "condition_embedder.time_proj.{leaf}"),
        *_attention("blocks.{n}.self_attn", "blocks.{n}.attn1"),
        *_attention("blocks.{n}.cross_attn", "blocks.{n}.attn2"),
        # Only the norm before cross-attention has weights; the two projects number it differently.
        ("blocks.{n}.norm3.{leaf}", "blocks.{n}.norm2.{leaf}"),
        ("blocks.{n}.ffn.0.{leaf}", "blocks.{n}.ffn.net.0.proj.{leaf}"),
        ("blocks.{n}.ffn.2.{leaf}", "blocks.{n}.ffn.net.2.{leaf}"),
        ("blocks.{n}.modulation", "blocks.{n}.scale_shift_table"),
        ("head.head.{leaf}", "proj_out.{leaf}"),
        ("head.modulation", "scale_shift_table"),
    )
)


def transformer_config(shapes: Shapes, official: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of diffusers' WanTransformer3DModel for a checkpoint in diffusers' names.

    Args:
        shapes: tensor shapes by diffusers key.
        official: the official config.json where there is one; it alone knows the number of heads and the epsilon.
            Without it a head is 128 wide, as in every published Wan model.

    Raises:
        CheckpointError: a tensor that fixes a size is missing or has another rank.
    """
    official = official or {}
    try:
        dim, in_channels, *patch = shapes["patch_embedding.weight"]
        text_dim = shapes["condition_embedder.text_embedder.linear_1.weight"][1]
        freq_dim = shapes["condition_embedder.time_embedder.linear_1.weight"][1]
        ffn_dim = shapes["blocks.0.ffn.net.0.proj.weight"][0]
        out_features = shapes["proj_out.weight"][0]
        patch_t, patch_h, patch_w = patch
    except (KeyError, IndexError, ValueError) as cause:
        raise CheckpointError(f"not a complete Wan transformer: no usable tensor for {cause}") from cause
    num_heads, eps = official.get("num_heads") or max(dim // 128, 1), official.get("eps") or 1e-6
    if not isinstance(num_heads, int) or not isinstance(eps, float):
        raise CheckpointError(f"the config says num_heads = {num_heads!r}, eps = {eps!r}; both must be numbers")
    patch_volume = patch_t * patch_h * patch_w
    if min(num_heads, dim, patch_volume) < 1 or dim % (2 * num_heads) or out_features % patch_volume:
        raise CheckpointError(f"not a Wan transformer: {dim} channels, {num_heads} heads, {out_features} outputs")
    return {
        "patch_size": (patch_t, patch_h, patch_w),
        "num_attention_heads": num_heads,
        "attention_head_dim": dim // num_heads,
        "in_channels": in_channels,
        "out_channels": out_features // patch_volume,
        "text_dim": text_dim,
        "freq_dim": freq_dim,
        "ffn_dim": ffn_dim,
        "num_layers": count_blocks(shapes, "blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
        "eps": eps,
    }


def official_transformer_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The official config.json for a diffusers config."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    known = next((f.key for f in KNOWN.values() if f.transformer == transformer_dims(config)), "")
    return {
        "_class_name": "WanModel",
        "model_type": "ti2v" if known.startswith("ti2v") else "t2v",
        "dim": dim,
        "eps": config.get("eps", 1e-6),
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "num_heads": config["num_attention_heads"],
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_len": 512,
    }


def transformer_dims(config: Mapping[str, Any]) -> TransformerDims:
    """The sizes in a diffusers config; what it leaves out is diffusers' default, the 14B."""
    patch_t, patch_h, patch_w = config.get("patch_size", (1, 2, 2))
    return TransformerDims(
        dim=config.get("num_attention_heads", 40) * config.get("attention_head_dim", 128),
        ffn_dim=config.get("ffn_dim", 13824),
        num_heads=config.get("num_attention_heads", 40),
        num_layers=config.get("num_layers", 40),
        in_channels=config.get("in_channels", 16),
        out_channels=config.get("out_channels") or config.get("in_channels", 16),
        text_dim=config.get("text_dim", 4096),
        freq_dim=config.get("freq_dim", 256),
        patch_size=(patch_t, patch_h, patch_w),
    )


def count_blocks(keys: Collection[str], prefix: str) -> int:
    """How many different numbers follow the prefix.

    Raises:
        CheckpointError: they do not run from 0 without a gap; a key must not make up blocks that are not there.
    """
    parts = (key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix))
    numbers = {int(part) for part in parts if part.isdecimal() and len(part) < 6}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(f"{prefix}* are numbered up to {max(numbers)} but there are only {len(numbers)} of them")
    return len(numbers)
