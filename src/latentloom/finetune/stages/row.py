"""The row of layers that a run trains: what it is made of, and one stage of it with weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from latentloom.finetune.block_swap import BlockSwap, swapped_per_stage
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.encoder_files import load_text_encoder_file
from latentloom.finetune.frozen_linear import store_frozen_in_fp8
from latentloom.finetune.lora import inject_lora, lora_targets
from latentloom.finetune.optimizers import keeps_model_dtype
from latentloom.finetune.stages.layers import (
    PipelineLayer,
    TextBlock,
    TextInput,
    TextOutput,
    VideoBlock,
    VideoInput,
    VideoOutput,
    Wiring,
)
from latentloom.finetune.stages.micro_batch_facts import MicroBatchFacts
from latentloom.wan.checkpoints import build_empty, fill, recognise
from latentloom.wan.folded_padding import PaddingFold
from latentloom.wan.text_encoder import MAX_TOKENS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class LayerName:
    """One layer of the row: `text` or `video`, and `input`, `output` or the number of a block."""

    model: str
    part: str | int

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of its parameters begin with in its model."""
        return {
            ("text", "input"): ("shared.",),
            ("text", "output"): ("encoder.final_layer_norm.",),
            ("video", "input"): ("patch_embedding.", "condition_embedder."),
            ("video", "output"): ("scale_shift_table", "proj_out."),
        }.get((self.model, str(self.part)), (f"{'encoder.block' if self.model == 'text' else 'blocks'}.{self.part}.",))

    def __str__(self) -> str:
        return f"{self.model} {'block ' if isinstance(self.part, int) else ''}{self.part}"


def layer_names(num_text_blocks: int | None, num_video_blocks: int) -> list[LayerName]:
    """The whole row, first to last.

    Args:
        num_text_blocks: None where texts come from the cache.
        num_video_blocks: blocks of the transformer.
    """
    text = [] if num_text_blocks is None else _model_layers("text", num_text_blocks)
    return text + _model_layers("video", num_video_blocks)


def _model_layers(model: str, num_blocks: int) -> list[LayerName]:
    return [LayerName(model, "input"), *(LayerName(model, n) for n in range(num_blocks)), LayerName(model, "output")]


def trained_layers(config: FinetuneConfig, names: Sequence[LayerName]) -> list[bool]:
    """For every layer of the row whether anything in it is trained."""
    num_text = sum(name.model == "text" and isinstance(name.part, int) for name in names)
    first_text = num_text - config.model.text_train_blocks if config.model.text_train_blocks else -1
    blocks = (0, 0)
    if config.adapter is not None:
        num_video = sum(name.model == "video" and isinstance(name.part, int) for name in names)
        blocks = config.adapter.train_blocks_range or (0, num_video - 1)

    def is_trained(name: LayerName) -> bool:
        if name.model == "text":
            if not config.model.train_text_encoder:
                return False
            return first_text < 0 or (isinstance(name.part, int) and name.part >= first_text)
        return config.adapter is not None and isinstance(name.part, int) and blocks[0] <= name.part <= blocks[1]

    return [is_trained(name) for name in names]


@dataclass
class Stage:
    """One stage of the row, with weights.

    Attributes:
        layers: from first to last.
        transformer, encoder: the whole models, whose parameters of other stages are on the meta device.
        trained: this stage's trained parameters, by `transformer.` or `text_encoder.` and their name there.
        swap: the blocks whose weights may wait on the CPU; None without any.
    """

    layers: list[PipelineLayer]
    transformer: WanTransformer3DModel
    encoder: UMT5EncoderModel | None
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    swap: BlockSwap | None = None


def build_stage(
    config: FinetuneConfig,
    root: Path,
    expert: str | None,
    names: Sequence[LayerName],
    parts: Sequence[int],
    stage: int,
    device: torch.device,
) -> Stage:
    """The layers of one stage: the models are built without memory, and only this stage's weights are read.

    Args:
        config: the run's settings.
        root: the checkpoint.
        expert: of a two-expert model.
        names: the whole row.
        parts: where each stage begins, and the row's end.
        stage: which one.
        device: where it computes.
    """
    found = recognise(root)
    local = names[parts[stage] : parts[stage + 1]]
    dtype = DTYPES[config.model.dtype]
    where = torch.device("cpu") if config.blocks_to_swap else device
    video = found.component("transformer", expert)
    transformer = fill(build_empty(video), video, dtype, where, _is_local("video", local))
    encoder = None
    if names[0].model == "text":
        text = found.component("text_encoder")
        encoder = fill(build_empty(text), text, dtype, device, _is_local("text", local))
        if config.model.text_encoder_path is not None:
            load_text_encoder_file(encoder, config.model.text_encoder_path)
    if config.model.transformer_dtype == "float8":
        store_frozen_in_fp8(transformer, dtype)
    result = Stage([], transformer, encoder)
    _mark_trained(result, config, local)
    wiring = wiring_for(config, device)
    fold = PaddingFold(MAX_TOKENS) if wiring.folds else None
    facts = MicroBatchFacts(transformer.rope)
    result.layers = [_make(name, wiring, transformer, encoder, facts, fold) for name in local]
    _swap_blocks(result, config, names, parts, stage, device)
    return result


def wiring_for(config: FinetuneConfig, device: torch.device) -> Wiring:
    """How the layers of a run are connected."""
    is_float32 = config.model.dtype == "float32" and config.mixed_precision == "none"
    return Wiring(
        encodes=not config.model.cache_text_embeddings,
        trains_encoder=config.model.train_text_encoder,
        anchors=config.model.text_anchor_weight > 0,
        folds=is_float32 or device.type == "cpu",  # on CUDA attention is fastest without a bias
        device_type=device.type,
        autocasts=config.mixed_precision == "bf16",
        recomputes=config.activation_checkpointing,
        text_dropout=config.model.text_dropout,
    )


def _is_local(model: str, local: Sequence[LayerName]) -> Callable[[str], bool]:
    prefixes = tuple(prefix for name in local if name.model == model for prefix in name.prefixes)
    return lambda name: name.startswith(prefixes)


def _mark_trained(stage: Stage, config: FinetuneConfig, local: Sequence[LayerName]) -> None:
    """Put adapters in and say which parameters of this stage are trained."""
    train_dtype = DTYPES[config.model.dtype] if keeps_model_dtype(config.optimizer) else torch.float32
    stage.transformer.requires_grad_(False)
    if config.adapter is not None:
        adapter = config.adapter
        num_blocks = len(stage.transformer.blocks)
        targets = lora_targets(num_blocks, adapter.train_blocks_range, adapter.targets, adapter.allow_self_attn)
        added = inject_lora(stage.transformer, targets, adapter.rank, adapter.dropout, train_dtype, config.seed)
        here = {name: weight for name, weight in added.items() if not weight.is_meta}
        stage.trained |= {f"transformer.{name}": weight for name, weight in here.items()}
    if stage.encoder is None:
        return
    stage.encoder.requires_grad_(False)
    names = [name for name in local if name.model == "text"]
    chosen = [name for name, trained in zip(names, _trains_text(config, stage.encoder, names), strict=True) if trained]
    prefixes = tuple(prefix for name in chosen for prefix in name.prefixes)
    for name, weight in stage.encoder.named_parameters():
        if prefixes and name.startswith(prefixes):
            weight.data = weight.data.to(train_dtype)
            weight.requires_grad_(True)
            stage.trained[f"text_encoder.{name}"] = weight


def _trains_text(config: FinetuneConfig, encoder: UMT5EncoderModel, names: Sequence[LayerName]) -> list[bool]:
    row = layer_names(len(encoder.encoder.block), 0)
    by_name = dict(zip(row, trained_layers(config.model_copy(update={"adapter": None}), row), strict=True))
    return [by_name[name] for name in names]


def _make(
    name: LayerName,
    wiring: Wiring,
    transformer: WanTransformer3DModel,
    encoder: UMT5EncoderModel | None,
    facts: MicroBatchFacts,
    fold: PaddingFold | None,
) -> PipelineLayer:
    if name.model == "text":
        assert encoder is not None
        if isinstance(name.part, int):
            return TextBlock(wiring, encoder, name.part)
        return (TextInput if name.part == "input" else TextOutput)(wiring, encoder)
    if isinstance(name.part, int):
        return VideoBlock(wiring, transformer, name.part, facts, fold)
    return VideoInput(wiring, transformer) if name.part == "input" else VideoOutput(wiring, transformer, facts)


def _swap_blocks(
    stage: Stage,
    config: FinetuneConfig,
    names: Sequence[LayerName],
    parts: Sequence[int],
    number: int,
    device: torch.device,
) -> None:
    if config.blocks_to_swap == 0:
        return
    counts = [
        sum(name.model == "video" and isinstance(name.part, int) for name in names[begin:end])
        for begin, end in itertools.pairwise(parts)
    ]
    num_swapped = swapped_per_stage(config.blocks_to_swap, counts)[number]
    blocks = [layer for layer in stage.layers if isinstance(layer, VideoBlock)]
    if num_swapped == 0 or not blocks:
        return
    stage.swap = BlockSwap([layer.block for layer in blocks], num_swapped, device)
    for place, layer in enumerate(blocks):
        layer.swap, layer.place = stage.swap, place
