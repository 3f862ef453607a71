"""Trains a refiner of images with keypatches."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from latentloom.drifting.class_batches import ClassBatch
from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Holes, Keypatches
from latentloom.drifting.data import ImageData
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.image_features import ImageFeatures
from latentloom.drifting.images import Images
from latentloom.drifting.refiner import ADAM_NAMES, PatchRefiner, RefinerShape
from latentloom.drifting.refiner_files import Refiner
from latentloom.drifting.train import Refined, Refinement, run_training
from latentloom.keyframes import interpolation_errors


def train_refiner(
    data: ImageData,
    encoder: FeatureEncoder | None,
    config: DriftConfig,
    seed: int,
    folder: Path,
    device: torch.device,
    evaluate: Callable[[Refiner], Mapping[str, float]] | None = None,
) -> Refiner:
    """Train one refiner of images; see `run_training`, whose errors it raises.

    Args:
        data: images to train on.
        encoder: of the features that are compared; None where only the images themselves are.
        config: the settings.
        seed: of weights and draws.
        folder: of the state and the curve.
        device: to compute on.
        evaluate: measures the averaged weights at every checkpoint, in the first process.

    Returns:
        The averaged weights.
    """
    refinement = ImageRefinement(data.train, config, seed, device)
    return run_training(refinement, ImageFeatures(config, encoder), config, seed, folder, device, evaluate)


class ImageRefinement(Refinement[Refiner]):
    """Images of which a few patches are given.

    Args:
        images: to train on.
        config: the settings.
        seed: of the network's weights.
        device: of the network.
    """

    adam_names = ADAM_NAMES

    def __init__(self, images: Images, config: DriftConfig, seed: int, device: torch.device) -> None:
        self.images = images
        self.config = config
        self.keypatches = Keypatches(config, images.shape)
        self.labels = images.labels
        self.num_classes = len(images.class_names)
        self.shape = images.shape
        self.network = _new_refiner(config, self.keypatches, self.num_classes, seed).to(device)

    def load(self, rows: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Refinable."""
        return self.images.load(rows)

    def draw_holes(self, num: int, generator: torch.Generator) -> Holes:
        """See Refinable."""
        return self.keypatches.draw_holes(num, generator)

    def refine(self, model: nn.Module, batch: ClassBatch, *, measures: bool) -> Refined:
        """See Refinement."""
        holes = batch.holes
        clean = self.keypatches.to_tokens(batch.clean)
        filled = self.keypatches.fill(clean, holes)
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.config.amp_bf16):
            refined = model(filled, holes.given, batch.sample_classes, holes.level, batch.sample_alpha)
        errors = interpolation_errors(filled, clean, holes.given) if measures else {}
        return Refined(self.keypatches.to_images(refined), batch.clean, errors)

    def refiner(self, network: nn.Module) -> Refiner:
        """See Refinement."""
        assert isinstance(network, PatchRefiner)
        return Refiner(network, self.keypatches)


def _new_refiner(config: DriftConfig, keypatches: Keypatches, num_classes: int, seed: int) -> PatchRefiner:
    shape = RefinerShape(
        num_patches=keypatches.num_patches,
        num_values=keypatches.num_values,
        num_classes=num_classes,
        num_levels=config.num_levels,
        width=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        keep_anchors_fixed=config.keep_anchors_fixed,
    )
    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        return PatchRefiner(shape)
