"""Memory that a training takes on each GPU, counted from the weights on the meta device."""

from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.checkpoint import DTYPES
from latentloom.bridge.config import BridgeConfig, LoraConfig
from latentloom.bridge.loss import CUDA_CHUNK_VALUES

FLOAT32 = 4


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. The CUDA context and fragmentation, about 1 to 2 GB, are not in them.

    Attributes:
        weights: each in its own dtype: frozen ones in the settings', trained ones in float32.
        gradients: of trained weights, in float32; under ddp a second time, in the buckets that are exchanged.
        optimizer: AdamW's two averages.
        activations: what the backward pass of the largest batch needs, see `layer_bytes`, with one layer more for
            what a layer makes and drops.
        logits: a chunk of them, in the dtype and twice in float32; and where the output layer is trained, a float32
            gradient made beside its own, and its weight in the dtype.
        working: under ddp the trained weights in the dtype of autocast; under fsdp the layer at work and the one
            that is gathered ahead, and the gradient of one before it is scattered.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))


def ddp_memory(
    backbone: Backbone, parts: dict[str, nn.Module], config: BridgeConfig, tokens: int, processes: int
) -> Memory:
    """Memory where every GPU holds the whole model.

    Args:
        backbone: on the meta device; what is trained needs gradients.
        parts: likewise.
        config: the settings.
        tokens: positions of a batch on a GPU.
        processes: GPUs; alone, no gradient is exchanged.
    """
    modules = [backbone.model, *parts.values()]
    trained = sum(_trained(module) for module in modules)
    itemsize = _itemsize(config)
    cast = itemsize * _trained(backbone.decoder) if itemsize < FLOAT32 else 0
    return Memory(
        weights=sum(_bytes(module) for module in modules),
        gradients=FLOAT32 * trained * (2 if processes > 1 else 1),
        optimizer=2 * FLOAT32 * trained,
        activations=_activations(backbone, config, tokens),
        logits=_logits(backbone, config),
        working=cast,
    )


def fsdp_memory(
    backbone: Backbone, parts: dict[str, nn.Module], config: BridgeConfig, tokens: int, processes: int
) -> Memory:
    """Memory where each GPU holds its share of every layer of the backbone, and the rest whole.

    Embedding, final norm and output layer are not sharded. Arguments as for `ddp_memory`.
    """
    layers = list(backbone.decoder.get_submodule("layers").children())
    sharded_bytes, sharded_trained = sum(map(_bytes, layers)), sum(map(_trained, layers))
    modules = [backbone.model, *parts.values()]
    whole_trained = sum(_trained(module) for module in modules) - sharded_trained
    trained = whole_trained + _share(sharded_trained, processes)
    itemsize = _itemsize(config)
    numels = [sum(weight.numel() for weight in layer.parameters()) for layer in layers]
    gathered = 2 * itemsize * max(numels) + (FLOAT32 + itemsize) * max(map(_trained, layers))
    whole_bytes = sum(_bytes(module) for module in modules) - sharded_bytes
    # the embedding is cast as a whole only where its rows are looked up, and those are activations
    return Memory(
        weights=whole_bytes + _share(sharded_bytes, processes),
        gradients=FLOAT32 * trained,
        optimizer=2 * FLOAT32 * trained,
        activations=_activations(backbone, config, tokens),
        logits=_logits(backbone, config),
        working=gathered,
    )


def layer_bytes(config: Any, itemsize: int, length: int, *, trained: bool, lora: LoraConfig | None) -> int:
    """Bytes per position that a decoder layer keeps for its backward pass.

    With H channels, A query heads of d channels, I intermediate channels, L positions of a text and s bytes a value:

        8 H + 8 + 4 (A + K) (d + 1), the last where queries and keys are normed: inputs of norms, in float32
        s L: the mask of a padded batch, which attention makes anew from the common one
        4 s A d + 4 A: queries, keys and values (repeated for all heads, as in padded batches), output, normaliser
        3 s I: both branches of the gated layer and the activated one
        trained: s (2 H + I), and 5 s H below float32, where each product casts its own input, else 2 s H; and
            s (A + K) d, where queries and keys are normed
        adapter of rank r: s (input + r) for each target; in float32 targets of one input share it

    Small Llama and Qwen3 layers on a CPU keep exactly this of a padded batch (saved_tensors_hooks, the casts of weights
    aside), and 7 to 15 % less of one without padding, whose keys and values are not repeated and which has no mask: see
    tests/bridge/test_bridge_plan.py. What a GPU keeps was not measured.

    Args:
        config: the backbone's.
        itemsize: bytes of the computing dtype.
        length: positions of a text.
        trained: whether the layer's own weights are.
        lora: the adapter, where one is trained.
    """
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    kv_heads = config.num_key_value_heads
    channels = getattr(config, "head_dim", None) or width // heads
    normed = (heads + kv_heads) if config.model_type == "qwen3" else 0
    total = 8 * width + 8 + FLOAT32 * normed * (channels + 1) + itemsize * length
    total += 4 * itemsize * heads * channels + FLOAT32 * heads + 3 * itemsize * inner
    if trained:
        total += itemsize * (2 * width + inner + normed * channels)
        total += itemsize * width * (5 if itemsize < FLOAT32 else 2)
    if lora is not None and lora.rank:
        total += itemsize * lora.rank * len(lora.targets)
        inputs = [("qkv", width), ("qkv", width), ("qkv", width), ("o", heads * channels)]
        inputs += [("gated", width), ("gated", width), ("down", inner)]
        names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        kept = [given for name, given in zip(names, inputs, strict=True) if name in lora.targets]
        if itemsize == FLOAT32:  # the output of attention is kept already
            kept = [given for given in set(kept) if given[0] != "o"]
        total += itemsize * sum(size for _, size in kept)
    return total


def _activations(backbone: Backbone, config: BridgeConfig, tokens: int) -> int:
    """Of the backward passes that a step makes through the backbone; a gradient to the prefix needs all layers."""
    model, task, itemsize = config.model, config.training.task, _itemsize(config)
    layers = list(backbone.decoder.get_submodule("layers").children())
    shape = backbone.model.config
    adapter = model.lora if model.lora.rank else None

    def of_pass(first: int, lora: LoraConfig | None) -> int:
        length = tokens // config.training.train_batch_size
        kept = [layer_bytes(shape, itemsize, length, trained=_trains_own(layer), lora=lora) for layer in layers[first:]]
        ends = (2 * itemsize + FLOAT32) * shape.hidden_size  # embeddings, last states, the last norm's input
        return tokens * (sum(kept) + (max(kept) if kept else 0) + ends)

    total = of_pass(0, adapter) if task != "t2l" else 0
    encodes_through_adapter = adapter is not None and model.lora.encode
    whole = encodes_through_adapter or backbone.embedding.weight.requires_grad
    if task != "l2t" and (whole or any(map(_trains_own, layers))):
        first = 0 if whole else len(layers) - model.unfreeze_layers
        states = tokens * itemsize * shape.hidden_size * (len(layers) + 1)
        total += of_pass(first, adapter if encodes_through_adapter else None) + states
    return total


def _logits(backbone: Backbone, config: BridgeConfig) -> int:
    if config.training.task == "t2l":
        return 0
    itemsize, weight = _itemsize(config), backbone.output_weight
    chunk = (itemsize + 2 * FLOAT32) * CUDA_CHUNK_VALUES
    if not weight.requires_grad:
        return chunk
    return chunk + weight.numel() * (FLOAT32 + (itemsize if itemsize < FLOAT32 else 0))


def _trains_own(layer: nn.Module) -> bool:
    """Whether a layer's weights are trained, an adapter's aside."""
    return any(weight.requires_grad for name, weight in layer.named_parameters() if "lora_" not in name)


def _share(whole: int, processes: int) -> int:
    return -(-whole // processes)


def _itemsize(config: BridgeConfig) -> int:
    return DTYPES[config.training.dtype].itemsize


def _bytes(module: nn.Module) -> int:
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


def _trained(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)
