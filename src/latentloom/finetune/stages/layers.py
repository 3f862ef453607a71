"""The models' parts as layers of a pipeline; together they compute what the whole models compute.

A row of layers is `TextInput, TextBlock..., TextOutput, VideoInput, VideoBlock..., VideoOutput`; where texts come
encoded from the cache it begins with `VideoInput`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from diffusers.models.attention_processor import AttentionProcessor
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import UMT5EncoderModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.umt5.modeling_umt5 import UMT5Attention

from latentloom.finetune.lora import SeededDropout
from latentloom.finetune.stages.micro_batch_facts import MicroBatchFacts
from latentloom.finetune.stages.wire import Wire
from latentloom.tensors import TextEmbeddings
from latentloom.wan.folded_padding import FoldedProcessor, PaddingFold
from latentloom.wan.text_encoder import MAX_TOKENS

if TYPE_CHECKING:
    from latentloom.finetune.block_swap import BlockSwap


@dataclass(frozen=True)
class Wiring:
    """How the layers of one row are connected and compute.

    Args:
        encodes: texts arrive as token ids and are encoded in the row.
        trains_encoder: gradients flow from the transformer into the text encoder.
        anchors: the encoder's distance from its frozen self is computed on the way.
        folds: one text row, or a few, stand for all padding; see `wan.folded_padding`.
        device_type: `cpu` or `cuda`.
        autocasts: matrix products compute in bfloat16.
        recomputes: blocks keep no activations and compute them again in the backward pass.
        text_dropout: inside the encoder's blocks in training.
    """

    encodes: bool = False
    trains_encoder: bool = False
    anchors: bool = False
    folds: bool = False
    device_type: str = "cpu"
    autocasts: bool = False
    recomputes: bool = False
    text_dropout: float = 0.0

    @property
    def given(self) -> Wire:
        """What the first layer gets."""
        text = ("ids",) if self.encodes else ("text",)
        reference = ("reference", "anchored") if self.anchors else ()
        return Wire((), (*text, "lengths", "seed", "noisy", "timestep", *reference))

    @property
    def between_text_blocks(self) -> Wire:
        reference = ("reference", "anchored") if self.anchors else ()
        return Wire(("hidden",), ("lengths", "seed", "noisy", "timestep", *reference))

    @property
    def into_video(self) -> Wire:
        if not self.encodes:
            return self.given
        anchor = ("anchor",) if self.anchors else ()
        flowing = ("text", *anchor) if self.trains_encoder else ()
        fixed = () if self.trains_encoder else ("text",)
        return Wire(flowing, (*fixed, "lengths", "seed", "noisy", "timestep"))

    @property
    def between_video_blocks(self) -> Wire:
        anchor = ("anchor",) if self.anchors else ()
        flowing = ("hidden", "context", *anchor) if self.trains_encoder else ("hidden",)
        fixed = ("grid", "seed", "temb", "modulation", "bias")
        return Wire(flowing, fixed if self.trains_encoder else ("context", *fixed))


class PipelineLayer(nn.Module, ABC):
    """A part of a model between two wires; a frozen model's own dropout never acts.

    Args:
        wiring: of the whole row.
    """

    def __init__(self, wiring: Wiring) -> None:
        super().__init__()
        self.wiring = wiring

    def train(self, mode: bool = True) -> PipelineLayer:
        super().train(False)
        for part in self.modules():
            if isinstance(part, SeededDropout):
                part.train(mode)
        return self

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        with torch.autocast(self.wiring.device_type, torch.bfloat16, enabled=self.wiring.autocasts):
            return self.compute(tensors)

    @abstractmethod
    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """From what the layer before packed to what the layer after unpacks."""


class TextInput(PipelineLayer):
    """Token ids to token embeddings."""

    def __init__(self, wiring: Wiring, encoder: UMT5EncoderModel) -> None:
        super().__init__(wiring)
        self.embedding = encoder.shared

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.given.unpack(tensors)
        return self.wiring.between_text_blocks.pack(values | {"hidden": self.embedding(values["ids"])})


class TextBlock(PipelineLayer):
    """One block of UMT5."""

    def __init__(self, wiring: Wiring, encoder: UMT5EncoderModel, index: int) -> None:
        super().__init__(wiring)
        self.block = encoder.encoder.block[index]
        self.config = encoder.config
        for part in self.block.modules():
            if isinstance(part, nn.Dropout):
                part.p = wiring.text_dropout
            elif isinstance(part, UMT5Attention):
                part.dropout = wiring.text_dropout

    def train(self, mode: bool = True) -> TextBlock:
        super().train(mode)
        if self.wiring.text_dropout > 0:
            self.block.train(mode)
        return self

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.between_text_blocks.unpack(tensors)
        hidden = values["hidden"]
        mask = _is_token(values["lengths"], hidden.shape[1])
        attended = create_bidirectional_mask(config=self.config, inputs_embeds=hidden, attention_mask=mask.long())

        def run(hidden: Tensor) -> Tensor:
            return self.block(hidden, attention_mask=attended)

        hidden = checkpoint(run, hidden, use_reentrant=False) if self.wiring.recomputes else run(hidden)
        return self.wiring.between_text_blocks.pack(values | {"hidden": hidden})


class TextOutput(PipelineLayer):
    """The encoder's last norm; what lies after a prompt's end becomes zero, as Wan hands it to the transformer."""

    def __init__(self, wiring: Wiring, encoder: UMT5EncoderModel) -> None:
        super().__init__(wiring)
        self.norm = encoder.encoder.final_layer_norm

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.between_text_blocks.unpack(tensors)
        text = self.norm(values["hidden"])
        is_token = _is_token(values["lengths"], text.shape[1])
        text = text * is_token.unsqueeze(-1)
        if self.wiring.anchors:
            values["anchor"] = anchor_loss(text, values["reference"], is_token & values["anchored"].bool()[:, None])
        return self.wiring.into_video.pack(values | {"text": text})


class VideoInput(PipelineLayer):
    """Noised latents to tokens; timesteps and texts to what the blocks are conditioned on."""

    def __init__(self, wiring: Wiring, transformer: WanTransformer3DModel) -> None:
        super().__init__(wiring)
        self.patch_embedding = transformer.patch_embedding
        self.condition_embedder = transformer.condition_embedder

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.into_video.unpack(tensors)
        noisy, timestep, lengths = values["noisy"], values["timestep"], values["lengths"]
        dtype = self.patch_embedding.weight.dtype
        hidden = self.patch_embedding(noisy.to(dtype)).flatten(2).transpose(1, 2).contiguous()
        padded, bias = _context(values["text"].to(dtype), lengths, self.wiring)
        by_token = timestep.shape[1] if timestep.ndim == 2 else None
        temb, modulation, context, _ = self.condition_embedder(timestep.flatten(), padded, timestep_seq_len=by_token)
        passed = {
            "hidden": hidden,
            "context": context,
            "temb": temb,
            "modulation": modulation.unflatten(-1, (6, -1)),
            "bias": bias,
            "grid": torch.tensor(noisy.shape[2:], device=noisy.device),
        }
        return self.wiring.between_video_blocks.pack(values | passed)


class VideoBlock(PipelineLayer):
    """One block of the transformer.

    Args:
        facts: shared by the blocks of a process.
        fold: the same; None where padding is not folded.

    Attributes:
        swap: where frozen weights may wait on the CPU; None where they do not.
        place: this block's among those of `swap`.
    """

    def __init__(
        self,
        wiring: Wiring,
        transformer: WanTransformer3DModel,
        index: int,
        facts: MicroBatchFacts,
        fold: PaddingFold | None = None,
    ) -> None:
        super().__init__(wiring)
        block = transformer.blocks[index]
        assert isinstance(block, WanTransformerBlock)
        if fold is not None:
            block.attn2.set_processor(cast(AttentionProcessor, FoldedProcessor(fold)))
        self.block = block
        self.dropouts = [part for part in block.modules() if isinstance(part, SeededDropout)]
        self.facts = facts
        self.fold = fold
        self.swap: BlockSwap | None = None
        self.place = 0

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.between_video_blocks.unpack(tensors)
        hidden, context, modulation = values["hidden"], values["context"], values["modulation"]
        rotary = self.facts.rotary(values["grid"])
        seed = self.facts.seed(values["seed"]) if self.dropouts else 0

        def run(hidden: Tensor, context: Tensor) -> Tensor:
            if self.fold is not None:
                self.fold.bias = values["bias"]
            if self.swap is not None:
                self.swap.bring(self.place)
            for dropout in self.dropouts:
                dropout.seed = seed
            return self.block(hidden, context, modulation, rotary)

        with self.swap.saving() if self.swap is not None else nullcontext():
            if self.wiring.recomputes and torch.is_grad_enabled():
                hidden = checkpoint(run, hidden, context, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = run(hidden, context)
        return self.wiring.between_video_blocks.pack(values | {"hidden": hidden})


class VideoOutput(PipelineLayer):
    """Tokens to the predicted velocity, in the latents' shape; the anchor's distance passes through."""

    def __init__(self, wiring: Wiring, transformer: WanTransformer3DModel, facts: MicroBatchFacts) -> None:
        super().__init__(wiring)
        self.facts = facts
        self.norm_out = transformer.norm_out
        self.proj_out = transformer.proj_out
        self.scale_shift_table = transformer.scale_shift_table
        self.patch_size = tuple(transformer.config["patch_size"])

    def compute(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = self.wiring.between_video_blocks.unpack(tensors)
        hidden, temb = values["hidden"], values["temb"]
        table = self.scale_shift_table.unsqueeze(0) if temb.ndim == 3 else self.scale_shift_table
        shift, scale = (table + temb.unsqueeze(-2)).unbind(-2)
        if temb.ndim == 2:
            shift, scale = shift.unsqueeze(1), scale.unsqueeze(1)
        hidden = (self.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        tokens = self.proj_out(hidden)
        velocity = _unpatchify(tokens, self.facts.grid(values["grid"]), self.patch_size)
        return (velocity, values["anchor"]) if self.wiring.anchors else (velocity,)


def anchor_loss(text: Tensor, reference: Tensor, is_anchored: Tensor) -> Tensor:
    """How far tokens [B, L, D] are from where the frozen encoder has them, in units of their length; a scalar.

    Args:
        text: the encoder's output now.
        reference: the frozen encoder's.
        is_anchored: [B, L], the tokens that count.
    """
    moved = (text.float() - reference.float()).square().sum(-1)
    share = moved / reference.float().square().sum(-1).clamp_min(1e-12)
    return (share * is_anchored).sum() / is_anchored.sum().clamp_min(1)


def _is_token(lengths: Tensor, width: int) -> Tensor:
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def _context(text: Tensor, lengths: Tensor, wiring: Wiring) -> tuple[Tensor, Tensor]:
    """Texts [B, L, D] as the transformer takes them, and what is added to their logits (nothing, in one number)."""
    if wiring.folds:
        fold = PaddingFold(MAX_TOKENS, torch.bfloat16 if wiring.autocasts else text.dtype)
        padded = fold(TextEmbeddings.from_padded(text, lengths))
        assert fold.bias is not None
        return padded, fold.bias
    padded = nn.functional.pad(text, (0, 0, 0, MAX_TOKENS - text.shape[1]))
    return padded, text.new_zeros(1)


def _unpatchify(tokens: Tensor, grid: list[int], patch: tuple[int, ...]) -> Tensor:
    counts = [size // step for size, step in zip(grid, patch, strict=True)]
    blocks = tokens.reshape(len(tokens), *counts, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return blocks.reshape(len(tokens), -1, *grid)
