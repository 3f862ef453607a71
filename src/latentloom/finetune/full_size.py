"""The known models at full size, without memory for their weights, to plan with."""

from accelerate import init_empty_weights
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.errors import ConfigError
from latentloom.wan import facts
from latentloom.wan.facts import TextEncoderDims, TransformerDims
from latentloom.wan.keys_text_encoder import TEXT_ENCODER_KEYS
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS


def build_on_meta(key: str) -> WanTransformer3DModel:
    """A known model's transformer on the meta device; of a two-expert model one expert, as both have the same sizes.

    Args:
        key: "ti2v-5b", "t2v-a14b" or "t2v-1.3b".

    Raises:
        ConfigError: no such model, or one whose sizes only its checkpoint knows.
    """
    dims = facts.get(key).transformer
    if dims is None:
        raise ConfigError(f"the sizes of {key} are those of its checkpoint; give one of {', '.join(_sized())}")
    with init_empty_weights(include_buffers=False):
        return _transformer(dims).requires_grad_(False)


def build_text_encoder_on_meta(key: str) -> UMT5EncoderModel:
    """A known model's UMT5 encoder on the meta device.

    Raises:
        ConfigError: as for the transformer.
    """
    dims = facts.get(key).text_encoder
    if dims is None:
        raise ConfigError(f"the sizes of {key} are those of its checkpoint; give one of {', '.join(_sized())}")
    with init_empty_weights(include_buffers=False):
        return _text_encoder(dims).requires_grad_(False)


def official_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the model's checkpoint, by its name in the official layout.

    Args:
        model: diffusers' Wan transformer or transformers' UMT5 encoder, with or without memory.
    """
    keys = TEXT_ENCODER_KEYS if isinstance(model, UMT5EncoderModel) else TRANSFORMER_KEYS
    named = {keys.to_official(name): tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return {name: shape for name, shape in named.items() if name is not None}


def _sized() -> list[str]:
    return [key for key, known in facts.KNOWN.items() if known.transformer is not None]


def _transformer(dims: TransformerDims) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=dims.patch_size,
        num_attention_heads=dims.num_heads,
        attention_head_dim=dims.dim // dims.num_heads,
        in_channels=dims.in_channels,
        out_channels=dims.out_channels,
        text_dim=dims.text_dim,
        freq_dim=dims.freq_dim,
        ffn_dim=dims.ffn_dim,
        num_layers=dims.num_layers,
        cross_attn_norm=True,
    )


def _text_encoder(dims: TextEncoderDims) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=dims.vocab_size,
        d_model=dims.dim,
        d_kv=dims.attention_dim // dims.num_heads,
        d_ff=dims.ffn_dim,
        num_layers=dims.num_layers,
        num_heads=dims.num_heads,
        relative_attention_num_buckets=dims.num_buckets,
        feed_forward_proj="gated-gelu",
    )
    return UMT5EncoderModel(config)
