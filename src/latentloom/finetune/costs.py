"""What every layer of a run's row needs of the device's memory, from shapes alone."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from latentloom.errors import CheckpointError
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.frozen_linear import SKIPPED
from latentloom.finetune.full_size import build_on_meta, build_text_encoder_on_meta
from latentloom.finetune.lora import lora_targets
from latentloom.finetune.optimizers import keeps_model_dtype, state_bytes
from latentloom.finetune.stages.row import LayerName, layer_names, trained_layers
from latentloom.wan import facts as known
from latentloom.wan.checkpoints import build_empty
from latentloom.wan.clip_size import ClipSize, LatentGrid
from latentloom.wan.facts import ModelFacts
from latentloom.wan.layouts import recognise
from latentloom.wan.text_encoder import MAX_TOKENS

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class LayerCost:
    """One layer of the row; all sizes are bytes.

    Attributes:
        name: as `LayerName` prints it.
        is_swappable: whether its frozen weights may wait on the CPU.
        num_parameters, num_trained: how many; adapters count in both.
        frozen, trained: weights that stay as they are, and weights that are trained.
        training: gradients and the optimizer's state.
        kept: activations of one micro-batch, from its forward to its backward pass.
        working: of one micro-batch, while this layer computes, at the most; only of layers that keep less than all.
    """

    name: str
    is_swappable: bool
    num_parameters: int
    num_trained: int
    frozen: int
    trained: int
    training: int
    kept: int
    working: int


def layer_costs(
    config: FinetuneConfig, root: Path, expert: str | None = None, clip: ClipSize | None = None
) -> list[LayerCost]:
    """What each layer of a checkpoint's row costs, first to last; headers are read and no weights.

    Activations are those of `micro_batch_size_per_gpu` clips with prompts of 512 tokens, counted as autograd keeps
    them. In bytes, with e bytes per element of the products' dtype, d channels and f channels of the feed-forward
    part: per video token and block (24 + 6e)d + ef, with timesteps per token (`first_frame_prob`) 32d more; per text
    token and block, for cross-attention, (4 + 3e)d; per text token and encoder block (8 + 6e)d + (12 + e)a + 4hL + 7ef
    with a channels and h heads of attention and L tokens. Blocks that recompute keep their input, ed per token. Before
    the first trained layer nothing is kept. Adapters beside those of cross-attention keep a little more.

    Args:
        config: the run's settings.
        root: the checkpoint.
        expert: of a two-expert model.
        clip: size of the clips; None is the model's own.

    Raises:
        CheckpointError: there is no transformer, or the encoder is needed and is not there.
        ConfigError: the model cannot make such clips.
    """
    found = recognise(root)
    if found.facts is None:
        raise CheckpointError(f"{root} holds no transformer, which training needs")
    encoder = None if config.model.cache_text_embeddings else build_empty(found.component("text_encoder"))
    transformer = build_empty(found.component("transformer", expert))
    return _costs(config, transformer, encoder, _num_tokens(found.facts, clip))


def known_costs(config: FinetuneConfig, key: str, clip: ClipSize | None = None) -> list[LayerCost]:
    """What each layer of a known model's row costs; see `layer_costs`.

    Args:
        config: the run's settings; its `ckpt_path` is not looked at.
        key: "ti2v-5b", "t2v-a14b" (one expert of it) or "t2v-1.3b".
        clip: size of the clips; None is the model's own.
    """
    encoder = None if config.model.cache_text_embeddings else build_text_encoder_on_meta(key)
    return _costs(config, build_on_meta(key), encoder, _num_tokens(known.get(key), clip))


def _num_tokens(facts: ModelFacts, clip: ClipSize | None) -> int:
    return LatentGrid.of(facts).num_tokens(clip or ClipSize.for_model(facts))


def _costs(
    config: FinetuneConfig, transformer: WanTransformer3DModel, encoder: UMT5EncoderModel | None, num_tokens: int
) -> list[LayerCost]:
    names = layer_names(None if encoder is None else len(encoder.encoder.block), len(transformer.blocks))
    trained = trained_layers(config, names)
    first_trained = trained.index(True) if True in trained else len(names)
    shapes = {"video": _shapes(transformer), "text": {} if encoder is None else _shapes(encoder)}
    adapters = _adapters(config, transformer)
    costs = []
    for place, (name, is_trained) in enumerate(zip(names, trained, strict=True)):
        own = {key: shape for key, shape in shapes[name.model].items() if key.startswith(name.prefixes)}
        added = {key: shape for key, shape in adapters.items() if key.startswith(name.prefixes)}
        if name.model == "video":
            activations = _video_activations(config, transformer, name, num_tokens)
        else:
            activations = _text_activations(config, encoder, name)
        costs.append(_cost(config, name, own, added, is_trained, activations, keeps=place >= first_trained))
    return costs


def _cost(
    config: FinetuneConfig,
    name: LayerName,
    own: Shapes,
    added: Shapes,
    is_trained: bool,
    activations: tuple[int, int],
    keeps: bool,
) -> LayerCost:
    moving = added if name.model == "video" else (own if is_trained else {})
    resting = {key: shape for key, shape in own.items() if key not in moving}
    weight_bytes = 2 if keeps_model_dtype(config.optimizer) and config.model.dtype == "bfloat16" else 4
    num_trained = _count(moving)
    state = sum(state_bytes(config.optimizer, key, shape, weight_bytes) for key, shape in moving.items())
    whole, at_border = (size * config.micro_batch_size_per_gpu for size in activations)
    is_block = isinstance(name.part, int)
    kept = (at_border if config.activation_checkpointing and is_block else whole) if keeps else 0
    return LayerCost(
        name=str(name),
        is_swappable=name.model == "video" and is_block,
        num_parameters=_count(resting) + num_trained,
        num_trained=num_trained,
        frozen=sum(_resting_bytes(config, name, key, shape) for key, shape in resting.items()),
        trained=num_trained * weight_bytes,
        training=num_trained * weight_bytes + state,
        kept=kept,
        working=0 if kept == whole else whole,
    )


def _resting_bytes(config: FinetuneConfig, name: LayerName, key: str, shape: tuple[int, ...]) -> int:
    """Bytes of a frozen weight as it is stored on the device."""
    count = math.prod(shape)
    if name.model == "video":
        layer, _, leaf = key.rpartition(".")
        in_fp8 = config.model.transformer_dtype == "float8" and len(shape) == 2 and leaf == "weight"
        if in_fp8 and not any(re.search(pattern, layer) for pattern in SKIPPED):
            return count + 4 * shape[0]
        if set(WanTransformer3DModel._keep_in_fp32_modules) & set(key.split(".")):
            return 4 * count
    return count * (2 if config.model.dtype == "bfloat16" else 4)


def _adapters(config: FinetuneConfig, transformer: WanTransformer3DModel) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapters' matrices by their names in the transformer."""
    adapter = config.adapter
    if adapter is None:
        return {}
    targets = lora_targets(
        len(transformer.blocks), adapter.train_blocks_range, adapter.targets, adapter.allow_self_attn
    )
    shapes: dict[str, tuple[int, ...]] = {}
    for target in targets:
        num_outputs, num_inputs = transformer.get_parameter(f"{target}.weight").shape
        shapes[f"{target}.lora_A.weight"] = (adapter.rank, num_inputs)
        shapes[f"{target}.lora_B.weight"] = (num_outputs, adapter.rank)
    return shapes


def _video_activations(
    config: FinetuneConfig, transformer: WanTransformer3DModel, name: LayerName, num_tokens: int
) -> tuple[int, int]:
    """Bytes per clip that a layer of the transformer keeps, and what it keeps where it recomputes."""
    sizes = transformer.config
    d, e = sizes["num_attention_heads"] * sizes["attention_head_dim"], _product_bytes(config)
    if isinstance(name.part, int):
        by_token = 32 * d if config.model.first_frame_prob > 0 else 0
        per_token = (24 + 6 * e) * d + e * sizes["ffn_dim"] + by_token
        return num_tokens * per_token + MAX_TOKENS * (4 + 3 * e) * d, num_tokens * e * d
    # The input keeps texts between the two projections; the output its norm's input.
    return (MAX_TOKENS * 2 * e * d, 0) if name.part == "input" else (num_tokens * 4 * d, 0)


def _text_activations(config: FinetuneConfig, encoder: UMT5EncoderModel | None, name: LayerName) -> tuple[int, int]:
    """Bytes per prompt that a layer of the encoder keeps, and what it keeps where it recomputes."""
    if encoder is None or name.part == "input":
        return 0, 0
    sizes, e = encoder.config, _product_bytes(config)
    d, norm = sizes.d_model, (4 + 3 * e) * sizes.d_model
    if not isinstance(name.part, int):
        return MAX_TOKENS * norm, 0
    attention = (12 + e) * sizes.d_kv * sizes.num_heads + 4 * sizes.num_heads * MAX_TOKENS
    return MAX_TOKENS * (2 * norm + attention + 7 * e * sizes.d_ff), MAX_TOKENS * e * d


def _product_bytes(config: FinetuneConfig) -> int:
    return 2 if config.mixed_precision == "bf16" or config.model.dtype == "bfloat16" else 4


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
