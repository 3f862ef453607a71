"""Trains a refiner of clips that completes them from their keyframes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from latentloom.drifting.class_batches import ClassBatch
from latentloom.drifting.clips.backbones import adam_names, load_network_state, network_state, new_network
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FilledClips, FrameHoles, Keyframes
from latentloom.drifting.clips.data import ClipData, Clips
from latentloom.drifting.clips.features import ClipFeatures
from latentloom.drifting.clips.refiner_files import ClipRefiner, load_clip_refiner
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.representation.codebook import Codebook
from latentloom.drifting.train import Refined, Refinement, run_training
from latentloom.errors import ConfigError


def train_clip_refiner(
    data: ClipData,
    classes: Codebook,
    keyframes: Keyframes,
    encoder: FeatureEncoder | None,
    config: ClipConfig,
    seed: int,
    folder: Path,
    device: torch.device,
    evaluate: Callable[[ClipRefiner], Mapping[str, float]] | None = None,
) -> ClipRefiner:
    """Train one refiner of clips; see `run_training`, whose errors it raises.

    Args:
        data: labelled clips.
        classes: that gave the labels.
        keyframes: takes frames away and fills them in.
        encoder: of the frames' features; None where only the clips themselves are compared.
        config: the settings.
        seed: of weights and draws.
        folder: of the state and the curve.
        device: to compute on.
        evaluate: measures the averaged weights at every checkpoint, in the first process.

    Returns:
        The averaged weights.
    """
    refinement = ClipRefinement(data, classes, keyframes, config, seed, device)
    return run_training(refinement, ClipFeatures(config, encoder), config, seed, folder, device, evaluate)


class ClipRefinement(Refinement[ClipRefiner]):
    """Clips of which a few frames are given.

    Args:
        data: labelled clips.
        classes: that gave the labels.
        keyframes: takes frames away and fills them in.
        config: the settings.
        seed: of the network's weights.
        device: of the network.

    Raises:
        ConfigError: keyframes of another model are asked for, and the shards have none; or a refiner to start from
            that does not fit.
    """

    def __init__(
        self,
        data: ClipData,
        classes: Codebook,
        keyframes: Keyframes,
        config: ClipConfig,
        seed: int,
        device: torch.device,
    ) -> None:
        self.data = data
        self.classes = classes
        self.clips = data.train
        self.config = config
        self.keyframes = keyframes
        self.labels = data.train.labels
        self.num_classes = classes.num_classes
        self.shape = data.train.shape
        self.has_text = data.text_width is not None
        self.adam_names = adam_names(config.backbone)
        self.network = new_network(data, config, self.num_classes, seed).to(device)
        if config.init_refiner is not None:
            _start_from(config.init_refiner, self.network, classes, config.ckpt_root)
        require_students(config, data.train)

    def load(self, rows: Int64[Tensor, "B"]) -> Float[Tensor, "B C T H W"]:
        """See Refinable."""
        return self.clips.load(rows)

    def draw_holes(self, num: int, generator: torch.Generator) -> FrameHoles:
        """See Refinable."""
        return self.keyframes.draw_holes(num, generator)

    def refine(self, model: nn.Module, batch: ClassBatch, *, measures: bool) -> Refined:
        """See Refinement."""
        holes = batch.holes
        student = self.clips.load_student(batch.rows) if self.config.student_replace_prob else None
        filled = self.keyframes.fill(batch.clean, holes, student)
        text = self.clips.load_text(batch.rows) if self.has_text else (None, None)
        with torch.autocast(batch.clean.device.type, torch.bfloat16, enabled=self.config.amp_bf16):
            about = (filled.given, filled.confidence, batch.sample_classes, filled.level, batch.sample_alpha)
            refined = model(filled.values, *about, *text)
        errors = _interpolation_errors(filled, batch.clean) if measures else {}
        refined = self.keyframes.hold_still(refined, filled)
        return Refined(refined, self.keyframes.target(batch.clean, holes), errors)

    def refiner(self, network: nn.Module) -> ClipRefiner:
        """See Refinement."""
        return ClipRefiner(network, self.keyframes, self.classes, self.data.manifest)


def _start_from(path: Path, network: nn.Module, classes: Codebook, ckpt_root: Path | None) -> None:
    """Give a network the weights of a trained refiner.

    Raises:
        ConfigError: that refiner is of another shape, or its pseudo-classes are others.
        CheckpointError: it is a LoRA of another checkpoint than `ckpt_root`.
    """
    other, _ = load_clip_refiner(path, ckpt_root=ckpt_root)
    (kind, shape, _), (other_kind, other_shape, state) = network_state(network), network_state(other.network)
    if (kind, _without_name(shape)) != (other_kind, _without_name(other_shape)):
        raise ConfigError(f"init_refiner = {str(path)!r} is of another shape; give the settings of its training")
    if not torch.equal(other.classes.centroids, classes.centroids):
        raise ConfigError(
            f"init_refiner = {str(path)!r} knows other pseudo-classes; give both one codebook, or the same shards"
        )
    load_network_state(network, state)


def _without_name(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A shape without the name of its checkpoint's folder, which may have moved; the fingerprint stays."""
    return {name: value for name, value in shape.items() if name != "base_name"}


def require_students(config: ClipConfig, clips: Clips) -> None:
    """Return if keyframes of another model are not asked for, or there are some.

    Raises:
        ConfigError: none of the clips has any.
    """
    if not config.student_replace_prob:
        return
    if not clips.index.has_anchors(clips.rows):
        raise ConfigError(
            "student_replace_prob is above 0, and the shards hold no anchors of another model; set it to 0, or give "
            "shards with {key}.anchors.pt"
        )


def _interpolation_errors(filled: FilledClips, clean: Float[Tensor, "B C T H W"]) -> dict[str, float]:
    squared = (filled.values.float() - clean.float()).square().mean(dim=(1, 3, 4))
    missing = ~filled.given
    return {
        "interp/mse_missing": float((squared * missing).sum() / missing.sum().clamp_min(1)),
        "interp/mse_all": float(squared.mean()),
    }
