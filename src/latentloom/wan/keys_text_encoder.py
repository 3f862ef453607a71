"""The text encoder's keys in the official layout and in transformers, and its sizes read off its shapes.

Source: wan/modules/t5.py of the official repository; transformers' UMT5EncoderModel. ComfyUI keeps transformers'
names and adds the SentencePiece model as the tensor `spiece_model`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentloom.errors import CheckpointError
from latentloom.wan.facts import TextEncoderDims
from latentloom.wan.key_map import KeyMap
from latentloom.wan.keys_transformer import Shapes, count_blocks

_ATTENTION = "encoder.block.{n}.layer.0"
_FEED_FORWARD = "encoder.block.{n}.layer.1"

TEXT_ENCODER_KEYS = KeyMap(
    (
        ("token_embedding.weight", "shared.weight"),
        ("blocks.{n}.norm1.weight", f"{_ATTENTION}.layer_norm.weight"),
        ("blocks.{n}.attn.{qkvo}.weight", _ATTENTION + ".SelfAttention.{qkvo}.weight"),
        ("blocks.{n}.pos_embedding.embedding.weight", f"{_ATTENTION}.SelfAttention.relative_attention_bias.weight"),
        ("blocks.{n}.norm2.weight", f"{_FEED_FORWARD}.layer_norm.weight"),
        ("blocks.{n}.ffn.gate.0.weight", f"{_FEED_FORWARD}.DenseReluDense.wi_0.weight"),
        ("blocks.{n}.ffn.fc1.weight", f"{_FEED_FORWARD}.DenseReluDense.wi_1.weight"),
        ("blocks.{n}.ffn.fc2.weight", f"{_FEED_FORWARD}.DenseReluDense.wo.weight"),
        ("norm.weight", "encoder.final_layer_norm.weight"),
    )
)


def text_encoder_config(shapes: Shapes) -> dict[str, Any]:
    """The arguments of transformers' UMT5Config for a checkpoint in transformers' names.

    Raises:
        CheckpointError: a tensor that fixes a size is missing or has another rank.
    """
    first = "encoder.block.0.layer"
    try:
        vocab_size, dim = shapes["shared.weight"]
        attention_dim = shapes[f"{first}.0.SelfAttention.q.weight"][0]
        num_buckets, num_heads = shapes[f"{first}.0.SelfAttention.relative_attention_bias.weight"]
        ffn_dim = shapes[f"{first}.1.DenseReluDense.wi_0.weight"][0]
    except (KeyError, IndexError, ValueError) as cause:
        raise CheckpointError(f"not a complete UMT5 encoder: no usable tensor for {cause}") from cause
    if num_heads < 1 or attention_dim % num_heads:
        raise CheckpointError(f"not a UMT5 encoder: {attention_dim} attention channels for {num_heads} heads")
    return {
        "vocab_size": vocab_size,
        "d_model": dim,
        "d_kv": attention_dim // num_heads,
        "d_ff": ffn_dim,
        "num_layers": count_blocks(shapes, "encoder.block."),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "feed_forward_proj": "gated-gelu",
    }


def text_encoder_dims(config: Mapping[str, Any]) -> TextEncoderDims:
    """The sizes in a transformers config."""
    return TextEncoderDims(
        vocab_size=config["vocab_size"],
        dim=config["d_model"],
        attention_dim=config["d_kv"] * config["num_heads"],
        ffn_dim=config["d_ff"],
        num_heads=config["num_heads"],
        num_layers=config["num_layers"],
        num_buckets=config.get("relative_attention_num_buckets", 32),
    )
