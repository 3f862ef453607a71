"""A trained refiner of clips, with all that makes its input, in one file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import ValidationError
from torch import Tensor, nn

from latentloom.drifting.clips.backbones import network_state, rebuilt_network
from latentloom.drifting.clips.condition import load_condition_encoder
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FilledClips, Keyframes
from latentloom.drifting.clips.manifest import ShardManifest
from latentloom.drifting.representation.codebook import Codebook
from latentloom.errors import CheckpointError, FileError
from latentloom.keyframes import frame_confidence
from latentloom.keyframes.sinkhorn import SinkhornWarper
from latentloom.storage import read_module, save_module

KINDS = ("TokenRefiner", "WanRefiner")
_PARTS = ("network", "warper", "classes", "condition")


@dataclass(frozen=True, eq=False)
class ClipRefiner:
    """A refiner with what makes its input.

    Attributes:
        network: takes filled clips, conditions and texts, and gives clips.
        keyframes: fills clips in.
        classes: says which pseudo-class a prompt with keyframes belongs to.
        manifest: of the shards it was trained on; None for shards of other programs.
    """

    network: nn.Module
    keyframes: Keyframes
    classes: Codebook
    manifest: ShardManifest | None

    @torch.no_grad()
    def complete(
        self,
        filled: FilledClips,
        masks: Bool[Tensor, "L B T"],
        classes: Int64[Tensor, "B"],
        alpha: Float[Tensor, "B"],
        text: Float[Tensor, "B L2 E"] | None = None,
        text_mask: Bool[Tensor, "B L2"] | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """Refine interpolated clips: in one step, or level by level where it was trained on neighbouring levels.

        Args:
            filled: what the refiner is given, at any level.
            masks: given frames of every level; level by level, frames of the next one are taken from the step before.
            classes: pseudo-classes.
            alpha: guidance strengths.
            text, text_mask: the prompts' tokens, padded, and true where there is one.
        """
        if self.keyframes.config.target == "clean":
            about = (filled.given, filled.confidence, classes, filled.level, alpha, text, text_mask)
            return self.keyframes.hold_still(self.network(filled.values, *about), filled)
        values, level = filled.values, filled.level
        for _ in range(int(filled.level.max()) + 1):
            given = masks[level.clamp_min(0), torch.arange(len(level), device=level.device)]
            # what an earlier step made is taken for given, and trusted less
            interpolated = self.keyframes.interpolate(values, given)
            confidence = frame_confidence(given, replaced=given & ~filled.given)
            step = FilledClips(interpolated, given & filled.given, confidence, level.clamp_min(0), given)
            about = (step.given, confidence, classes, step.level, alpha, text, text_mask)
            refined = self.keyframes.hold_still(self.network(interpolated, *about), step)
            values = torch.where((level >= 0).view(-1, 1, 1, 1, 1), refined, values)
            level = level - 1
        return values


def save_clip_refiner(path: Path | str, refiner: ClipRefiner, config: ClipConfig, record: Mapping[str, Any]) -> None:
    """Write a refiner.

    Args:
        path: ends in .safetensors.
        refiner: of averaged weights.
        config: the training's settings.
        record: how it came about, JSON values.
    """
    kind, shape, network = network_state(refiner.network)
    parts: dict[str, Mapping[str, Tensor]] = {
        "network": network,
        "classes": {"centroids": refiner.classes.centroids},
        "condition": refiner.classes.encoder.state_dict(),
    }
    if refiner.keyframes.warper is not None:
        parts["warper"] = refiner.keyframes.warper.state_dict()
    tensors = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
    settings = {
        "shape": shape,
        "settings": config.model_dump(mode="json"),
        "condition": refiner.classes.encoder.config(),
        "manifest": refiner.manifest.model_dump(mode="json") if refiner.manifest is not None else None,
    }
    save_module(path, tensors, kind, settings, record)


def load_clip_refiner(
    path: Path | str, device: torch.device | str = "cpu", ckpt_root: Path | None = None
) -> tuple[ClipRefiner, ClipConfig]:
    """A refiner from its file, frozen, and the settings it was trained with.

    Args:
        path: that `latentloom drift train` wrote.
        device: where it goes.
        ckpt_root: checkpoint that a LoRA was trained on, where it lies now; the training's own when None.

    Raises:
        FileError: no such file, or a file of something else.
        CheckpointError: its tensors are not those of its settings, or a LoRA of another checkpoint.
    """
    stored = read_module(path)
    if stored.kind not in KINDS:
        raise FileError(f"{path} holds {stored.kind}; give a refiner of clips that `latentloom drift train` wrote")
    try:
        config = ClipConfig.model_validate(stored.config["settings"])
        found = stored.config["manifest"]
        manifest = ShardManifest.model_validate(found) if found is not None else None
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS}
        for name, value in stored.tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value
        encoder = load_condition_encoder(stored.config["condition"], parts["condition"])
        classes = Codebook(parts["classes"]["centroids"], encoder)
        root = ckpt_root or config.ckpt_root
        network = rebuilt_network(stored.kind, stored.config["shape"], parts["network"], root)
        warper = _warper(parts["warper"], encoder.clip_shape[0]) if config.interp_mode == "learned" else None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, ValueError, ValidationError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not hold what its settings say; train it again") from error
    network = network.to(device).eval().requires_grad_(False)
    keyframes = Keyframes(config, encoder.clip_shape[1], warper if warper is None else warper.to(device))
    return ClipRefiner(network, keyframes, classes, manifest), config


def _warper(state: Mapping[str, Tensor], channels: int) -> SinkhornWarper:
    warper = SinkhornWarper(channels)
    warper.load_state_dict(state)
    return warper.eval().requires_grad_(False)
