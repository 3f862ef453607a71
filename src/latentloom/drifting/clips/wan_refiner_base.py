"""Wan refiners out of a checkpoint: new ones, and trained ones from what was saved of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Shaped
from torch import Tensor

from latentloom.drifting.clips.wan_refiner import WanRefiner, WanRefinerShape, level_timesteps
from latentloom.errors import CheckpointError, ConfigError
from latentloom.wan.checkpoint_fingerprints import fingerprint_transformer
from latentloom.wan.checkpoints import load_transformer
from latentloom.wan.shipped import micro_wan_weights


def make_wan_refiner(
    root: Path | None = None,
    *,
    channels: int,
    num_classes: int,
    num_levels: int,
    keep_anchors_fixed: bool = True,
    train_blocks: Literal["full", "lora"] = "full",
    lora_rank: int = 16,
    dtype: torch.dtype = torch.float32,
) -> WanRefiner:
    """A refiner that starts from a checkpoint's transformer and at first changes nothing.

    New weights are drawn from torch's global generator.

    Args:
        root: the checkpoint; MicroWan when None.
        channels: of the clips, 16 for latents of Wan 2.1.
        num_classes, num_levels: what it is conditioned on.
        keep_anchors_fixed: whether given frames are put back unchanged.
        train_blocks: what is trained.
        lora_rank: of the adapters, for "lora".
        dtype: of what is frozen, float32 or bfloat16; "full" takes float32.

    Raises:
        FileError: there is no such checkpoint, or not one transformer alone in it (CheckpointError).
        ConfigError: it takes other clips, or peft is missing.
    """
    root = micro_wan_weights() if root is None else root
    if train_blocks == "full" and dtype != torch.float32:
        raise ConfigError(f"train_blocks = 'full' in {dtype}; train all weights in float32, or set 'lora'")
    transformer = load_transformer(root, dtype=dtype)
    config = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    if config["in_channels"] != channels:
        raise ConfigError(
            f"{root} takes clips of {config['in_channels']} channels, these have {channels}; "
            "give latents of its VAE (frames of latent space), or backbone = 'tokens'"
        )
    shape = WanRefinerShape(
        num_classes=num_classes,
        num_levels=num_levels,
        transformer=config,
        base=fingerprint_transformer(root),
        base_name="MicroWan" if root == micro_wan_weights() else root.resolve().name,
        timesteps=level_timesteps(num_levels),
        keep_anchors_fixed=keep_anchors_fixed,
        train_blocks=train_blocks,
        lora_rank=lora_rank,
        base_dtype="float32" if dtype == torch.float32 else "bfloat16",
    )
    return WanRefiner(shape, transformer)


def rebuild_wan_refiner(
    shape: WanRefinerShape,
    state: Mapping[str, Shaped[Tensor, "..."]],
    root: Path | None = None,
) -> WanRefiner:
    """A trained refiner from its shape and what `state_to_save` gave.

    Args:
        shape: as it was trained.
        state: the saved weights.
        root: for "lora", the checkpoint it was trained on; MicroWan when None. "full" needs none.

    Raises:
        CheckpointError: the base is another one, or the weights are not those of the shape.
    """
    if shape.train_blocks == "full":
        transformer = cast(WanTransformer3DModel, WanTransformer3DModel.from_config(shape.transformer))
    else:
        root = micro_wan_weights() if root is None else root
        found = fingerprint_transformer(root)
        if found != shape.base:
            raise CheckpointError(
                f"{root} holds transformer {found}, the refiner was trained on {shape.base} ({shape.base_name}); "
                "give that checkpoint as ckpt_root"
            )
        transformer = load_transformer(root, dtype=getattr(torch, shape.base_dtype))
    refiner = WanRefiner(shape, transformer)
    try:
        refiner.load_saved(dict(state))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"these are not the weights of the refiner's settings: {reason}; train again") from error
    return refiner
