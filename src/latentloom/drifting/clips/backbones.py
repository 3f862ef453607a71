"""The networks that refine clips: new ones by the settings, and trained ones out of their files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentloom.drifting.clips.config import Backbone, ClipConfig
from latentloom.drifting.clips.data import ClipData
from latentloom.drifting.clips.refiner import ADAM_NAMES, TokenRefiner, TokenRefinerShape
from latentloom.errors import ConfigError


def new_network(data: ClipData, config: ClipConfig, num_classes: int, seed: int) -> nn.Module:
    """An untrained network, which changes nothing yet.

    Args:
        data: whose clips it takes.
        config: the settings.
        num_classes: pseudo-classes.
        seed: of its weights.

    Raises:
        ConfigError: clips that a Wan transformer does not take.
        FileError: there is no such checkpoint.
    """
    channels, num_frames, rows, columns = data.train.shape
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        if config.backbone == "wan":
            from latentloom.drifting.clips.wan_refiner_base import make_wan_refiner  # diffusers takes seconds

            network = make_wan_refiner(
                config.ckpt_root,
                channels=channels,
                num_classes=num_classes,
                num_levels=config.num_levels,
                keep_anchors_fixed=config.keep_anchors_fixed,
                train_blocks=config.train_blocks,
                lora_rank=config.lora_rank,
                dtype=getattr(torch, config.base_dtype),
            )
            network.gradient_checkpointing = config.gradient_checkpointing
            return network
        return TokenRefiner(
            TokenRefinerShape(
                channels=channels,
                num_frames=num_frames,
                rows=rows,
                columns=columns,
                patch=config.patch_size,
                num_classes=num_classes,
                num_levels=config.num_levels,
                text_width=data.text_width,
                width=config.width,
                depth=config.depth,
                num_heads=config.num_heads,
                keep_anchors_fixed=config.keep_anchors_fixed,
                mixes_linear=config.interp_mode in ("flow", "sinkhorn", "learned"),
            )
        )


def adam_names(backbone: Backbone) -> Sequence[str]:
    """Parts of the names of the weights that Muon leaves to Adam."""
    if backbone == "tokens":
        return ADAM_NAMES
    from latentloom.drifting.clips import wan_refiner

    return wan_refiner.ADAM_NAMES


def network_state(network: nn.Module) -> tuple[str, dict[str, Any], Mapping[str, Tensor]]:
    """The name of a network's class, its shape as JSON values, and the tensors that rebuild it."""
    if isinstance(network, TokenRefiner):
        return TokenRefiner.__name__, network.shape.model_dump(mode="json"), network.state_dict()
    from latentloom.drifting.clips.wan_refiner import WanRefiner

    assert isinstance(network, WanRefiner)
    return WanRefiner.__name__, network.shape.model_dump(mode="json"), network.state_to_save()


def load_network_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the tensors that `network_state` gave of one of the same shape."""
    if isinstance(network, TokenRefiner):
        network.load_state_dict(state)
        return
    from latentloom.drifting.clips.wan_refiner import WanRefiner

    assert isinstance(network, WanRefiner)
    network.load_saved(dict(state))


def rebuilt_network(
    kind: str, shape: Mapping[str, Any], state: Mapping[str, Tensor], ckpt_root: Path | None
) -> nn.Module:
    """A trained network from what `network_state` gave.

    Args:
        kind, shape, state: that.
        ckpt_root: checkpoint that a LoRA was trained on; MicroWan when None.

    Raises:
        ConfigError: a class that refines no clips.
        CheckpointError: tensors of another shape, or another base.
    """
    if kind == TokenRefiner.__name__:
        network = TokenRefiner(TokenRefinerShape.model_validate(shape))
        load_network_state(network, state)
        return network
    if kind != "WanRefiner":
        raise ConfigError(f"it holds {kind}, which refines no clips")
    from latentloom.drifting.clips.wan_refiner import WanRefinerShape
    from latentloom.drifting.clips.wan_refiner_base import rebuild_wan_refiner

    return rebuild_wan_refiner(WanRefinerShape.model_validate(shape), state, ckpt_root)
