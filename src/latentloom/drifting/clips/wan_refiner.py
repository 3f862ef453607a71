"""A Wan transformer as the refiner of clips: what was trained to take noise away learns to correct interpolation."""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import AttentionProcessor
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentloom.drifting.refiner import ALPHA_FREQUENCIES, alpha_waves
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs import Config
from latentloom.tensors.text_embeddings import PADDED_LENGTH
from latentloom.wan.folded_padding import FoldedProcessor, PaddingFold, shared_logits

#: What Muon leaves to Adam: the model's ends, and what conditions the blocks.
ADAM_NAMES = ("patch_embedding", "keyframe_in", "proj_out", "condition_embedder", "scale_shift_table", "of_alpha")
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")
NUM_TIMESTEPS = 1000


class WanRefinerShape(Config):
    """What rebuilds a refiner.

    Args:
        num_classes, num_levels: what it is conditioned on, besides the guidance strength.
        transformer: settings of the diffusers class.
        base: fingerprint of the checkpoint it started from, see `fingerprint_transformer`.
        base_name: that checkpoint's folder without the path to it, or MicroWan.
        timesteps: of Wan's schedule, 0 to 1000, one for each level.
        keep_anchors_fixed: whether given frames are put back unchanged.
        train_blocks: "full" trains everything; "lora" adapters in the blocks, and the layers that Wan does not have.
        lora_rank: of the adapters.
        base_dtype: of what is frozen.
    """

    num_classes: int = Field(ge=1)
    num_levels: int = Field(ge=1)
    transformer: dict[str, Any]
    base: str
    base_name: str
    timesteps: tuple[float, ...]
    keep_anchors_fixed: bool = True
    train_blocks: Literal["full", "lora"] = "full"
    lora_rank: int = Field(default=16, ge=1)
    base_dtype: Literal["float32", "bfloat16"] = "float32"


class WanRefiner(nn.Module):
    """A Wan transformer that corrects an interpolation in one step; at first it changes nothing.

    Beside the filled clip it sees the content of the given frames, and how far each frame is to be trusted. These
    channels' weights are zero at first, and so are those of class and guidance strength: the blocks start from what the
    pretrained model makes of the filled clip. The corruption level takes the place of the timestep. The output layer
    starts at zero; what it adds to the filled clip is learnt anew, as Wan's own speaks of noise.

    What is trained has `requires_grad`, everything else has not.

    Args:
        shape: of the conditions, and what is trained.
        transformer: the pretrained one, of text to video; it is changed and belongs to the refiner from then on.

    Attributes:
        gradient_checkpointing: compute the blocks again for the gradient, which takes time and saves memory.

    Raises:
        ConfigError: the transformer also takes images, or peft is missing, which "lora" needs.

    Source: the drifting document, 02-10, "Storyboard conditioning", and 02-11, "Refiner input/output for this line".
    """

    def __init__(self, shape: WanRefinerShape, transformer: WanTransformer3DModel) -> None:
        super().__init__()
        self.shape = shape
        self.transformer = transformer
        self.gradient_checkpointing = False
        config = transformer.config
        self.channels: int = config["in_channels"]
        if config["out_channels"] not in (None, self.channels) or config["image_dim"] is not None:
            raise ConfigError(
                f"{shape.base_name} is a transformer of {self.channels} input channels that also takes images; "
                "give one of text to video"
            )
        self._fold = PaddingFold(PADDED_LENGTH)
        for part in transformer.modules():
            if isinstance(part, WanAttention) and part.is_cross_attention:
                part.set_processor(cast(AttentionProcessor, FoldedProcessor(self._fold)))
        transformer.requires_grad_(shape.train_blocks == "full")
        if shape.train_blocks == "lora":
            _add_lora(transformer, shape.lora_rank)
        patch, width = tuple(config["patch_size"]), transformer.proj_out.in_features
        self.keyframe_in = nn.Conv3d(self.channels + 1, width, patch, patch, bias=False)
        self.of_class = nn.Embedding(shape.num_classes, width)
        self.of_alpha = nn.Sequential(nn.Linear(2 * ALPHA_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.timesteps: Tensor
        self.register_buffer("timesteps", torch.tensor(shape.timesteps), persistent=False)
        transformer.proj_out.float().requires_grad_(True)
        last = self.of_alpha[-1]
        for layer in (self.keyframe_in, self.of_class, last, transformer.proj_out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        # averaged weights are frozen as a whole, and still hold these
        self._trained = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)

    def forward(
        self,
        filled: Float[Tensor, "B C T H W"],
        given: Bool[Tensor, "B T"],
        confidence: Float[Tensor, "B T"],
        classes: Int64[Tensor, "B"],
        level: Int64[Tensor, "B"],
        alpha: Float[Tensor, "B"],
        text: Float[Tensor, "B L E"] | None = None,
        text_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """Refined clips, in the dtype of `filled`.

        Args:
            filled: clips whose missing frames are interpolated; sides that the patches do not divide are extended.
            given: true where a frame is no interpolation.
            confidence: from 0 to 1, of each frame.
            classes: pseudo-class of each clip.
            level: of corruption.
            alpha: guidance strength, 1 or more.
            text: of the prompts, padded, at most 512 tokens; None leaves the prompt open.
            text_mask: true where a token is.

        Raises:
            ShapeError: clips or texts that the transformer does not take.
        """
        self._check(filled, text)
        model, embedder = self.transformer, self.transformer.condition_embedder
        condition = embedder.time_embedder(embedder.timesteps_proj(self.timesteps[level]).to(_dtype(embedder)))
        condition = condition + self.of_class(classes) + self.of_alpha(alpha_waves(alpha))
        x, rotary = self._tokens(filled, given, confidence)
        condition = condition.to(embedder.time_proj.weight.dtype)
        modulation = embedder.time_proj(embedder.act_fn(condition)).unflatten(1, (6, -1))
        context, bias = self._context(len(filled), text, text_mask)
        for block in model.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(self._run, block, x, context, modulation, rotary, bias, use_reentrant=False)
            else:
                x = self._run(block, x, context, modulation, rotary, bias)
        shift, scale = (model.scale_shift_table + condition.float().unsqueeze(1)).chunk(2, dim=1)
        tokens = model.proj_out(model.norm_out(x.float()) * (1 + scale) + shift)
        refined = filled + self._clips(tokens, filled).to(filled.dtype)
        if not self.shape.keep_anchors_fixed:
            return refined
        return torch.where(given[:, None, :, None, None], filled, refined)

    def state_to_save(self) -> dict[str, Tensor]:
        """Everything that was trained: all weights, or, for "lora", those that the base checkpoint does not hold."""
        return {name: tensor for name, tensor in self.state_dict().items() if name in self._trained}

    def load_saved(self, state: dict[str, Tensor]) -> None:
        """Take the weights of `state_to_save`.

        Raises:
            RuntimeError: a weight is missing, unknown or of another shape.
        """
        if set(state) != self._trained:
            odd = sorted(set(state) ^ self._trained)
            raise RuntimeError(f"{len(odd)} weights are missing or unknown, such as {odd[0]}")
        self.load_state_dict(state, strict=False)

    def _run(
        self, block: nn.Module, x: Tensor, context: Tensor, modulation: Tensor, rotary: Sequence[Tensor], bias: Tensor
    ) -> Tensor:
        # inside of what is recomputed, as another batch's texts may have passed in between
        self._fold.bias = bias
        return block(x, context, modulation, rotary)

    def _tokens(self, filled: Tensor, given: Tensor, confidence: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """Tokens of the clips with their keyframes, and their places."""
        model = self.transformer
        keyframes = filled * given[:, None, :, None, None]
        trust = confidence[:, None, :, None, None].expand(-1, -1, -1, *filled.shape[3:])
        patch_time, *patch_sides = model.config["patch_size"]
        sides = [-size % patch for size, patch in zip(filled.shape[:2:-1], patch_sides[::-1], strict=True)]
        margins = [0, sides[0], 0, sides[1], 0, -filled.shape[2] % patch_time]
        clips, beside = (
            F.pad(part.float(), margins, mode="replicate") if any(margins) else part.float()
            for part in (filled, torch.cat([keyframes, trust], dim=1))
        )
        dtype = model.patch_embedding.weight.dtype
        x = model.patch_embedding(clips.to(dtype)) + self.keyframe_in(beside).to(dtype)
        return x.flatten(2).transpose(1, 2).contiguous(), model.rope(clips)

    def _context(
        self, batch: int, text: Tensor | None, text_mask: Tensor | None
    ) -> tuple[Float[Tensor, "B K D"], Float[Tensor, "B 1 1 K"]]:
        """Rows for cross-attention, and what is added to their logits; all padding is in the last rows."""
        embedder, device = self.transformer.condition_embedder.text_embedder, self.timesteps.device
        text_width = embedder.linear_1.in_features
        if text is None:
            text = torch.zeros(batch, 0, text_width, device=device)
        if text_mask is None:
            text_mask = torch.ones(text.shape[:2], dtype=torch.bool, device=device)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else _dtype(embedder)
        # in 16 bits, one logit for all padding would be off, so several share its weight
        num_rows = 1 if dtype in (torch.float32, torch.float64) else 3
        padding = (PADDED_LENGTH - text_mask.sum(dim=1, keepdim=True)).float().log()
        padding = padding if num_rows == 1 else shared_logits(padding, num_rows, dtype)
        of_tokens = torch.where(text_mask, 0.0, -math.inf)
        bias = torch.cat([of_tokens, padding.to(of_tokens.dtype)], dim=1)[:, None, None].to(dtype)
        rows = torch.where(text_mask.unsqueeze(-1), text, 0)
        rows = F.pad(rows, (0, 0, 0, num_rows)).to(_dtype(embedder))
        return embedder(rows), bias

    def _clips(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Clips of the shape of `like`, without what they were extended by."""
        patch = tuple(self.transformer.config["patch_size"])
        grid = [-(-size // side) for size, side in zip(like.shape[2:], patch, strict=True)]
        parts = tokens.view(len(tokens), *grid, *patch, self.channels).permute(0, 7, 1, 4, 2, 5, 3, 6)
        clips = parts.reshape(len(tokens), self.channels, *[n * side for n, side in zip(grid, patch, strict=True)])
        return clips[:, :, : like.shape[2], : like.shape[3], : like.shape[4]]

    def _check(self, filled: Tensor, text: Tensor | None) -> None:
        if filled.shape[1] != self.channels:
            raise ShapeError(
                f"clips of {filled.shape[1]} channels for {self.shape.base_name}, which takes {self.channels}; "
                "give latents of its VAE"
            )
        largest = self.transformer.config["rope_max_seq_len"]
        if max(filled.shape[2:]) > largest:
            raise ShapeError(f"clips of shape {tuple(filled.shape[1:])}; give at most {largest} frames, rows, columns")
        text_width = self.transformer.condition_embedder.text_embedder.linear_1.in_features
        if text is not None and (text.shape[2] != text_width or text.shape[1] > PADDED_LENGTH):
            raise ShapeError(
                f"texts of shape {tuple(text.shape[1:])} for {self.shape.base_name}; give at most {PADDED_LENGTH} "
                f"tokens of {text_width} channels, as its own encoder makes them"
            )


def level_timesteps(num_levels: int) -> tuple[float, ...]:
    """Timesteps spread evenly over Wan's schedule: the more frames are missing, the later one, as with more noise."""
    return tuple(NUM_TIMESTEPS * (level + 1) / (num_levels + 1) for level in range(num_levels))


def _add_lora(transformer: WanTransformer3DModel, rank: int) -> None:
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError(
            "train_blocks = 'lora' needs peft, which is not installed; run pip install 'latentloom[finetune]', "
            "or set train_blocks = 'full'"
        ) from error
    # exactly these layers: the last parts of their names also occur outside of the blocks
    names = [
        name
        for name, part in transformer.named_modules()
        if name.startswith("blocks.") and name.endswith(LORA_TARGETS) and isinstance(part, nn.Linear)
    ]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(parameter.dtype for parameter in module.parameters())
