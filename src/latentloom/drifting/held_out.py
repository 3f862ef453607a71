"""The held-out images of a run: refined, scored and shown beside what they were made from."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.data import ImageData
from latentloom.drifting.distances import frechet_distance, kernel_distance
from latentloom.drifting.evaluate import Scores, score
from latentloom.drifting.judge import Judge
from latentloom.drifting.pictures import given_patches, image_grid, one_of_each_class
from latentloom.drifting.refiner_files import Refiner
from latentloom.keyframes import interpolate_idw
from latentloom.runs.randomness import step_generator

IMAGES_SHOWN = 20
_IMAGES_AT_ONCE = 512


class HeldOut:
    """Held-out images with holes that are the same in every run, at the level with the fewest given patches.

    Args:
        data: whose held-out images are taken.
        config: the settings.
        judge: scores refined images; None where the data has a single class.
        device: where refiners compute.
    """

    def __init__(self, data: ImageData, config: DriftConfig, judge: Judge | None, device: torch.device) -> None:
        self.data = data
        self.config = config
        self.judge = judge
        self.device = device
        self.keypatches = Keypatches(config, data.held_out.shape)
        self.rows = one_of_each_class(data.held_out.labels, config.eval_images)
        self.labels = data.held_out.labels[self.rows]
        self.images = torch.cat([data.held_out.load(part) for part in self.rows.split(_IMAGES_AT_ONCE)])
        level = len(self.keypatches.counts) - 1
        generator = step_generator(config.split_seed, 0, "held-out holes")
        self.holes = self.keypatches.draw_holes(len(self.rows), generator, level).to(device)
        self.tokens = self.keypatches.to_tokens(self.images)
        self.filled = self.keypatches.fill(self.tokens, self.holes)

    def interpolated(self) -> dict[str, Float[Tensor, "N C H W"]]:
        """The images as interpolation alone fills them, without noise, by name; inverse distances always among them."""
        idw = interpolate_idw(self.tokens, self.holes.given, self.keypatches.grid, self.config.idw_power)
        methods = {"IDW interpolation": self._finished(idw)}
        if self.config.interp_mode == "laplacian":
            has_noise = self.holes.noise is not None
            harmonic = self.keypatches.fill(self.tokens, replace(self.holes, noise=None)) if has_noise else self.filled
            methods["harmonic interpolation"] = self._finished(harmonic)
        return methods

    @torch.no_grad()
    def refined(self, refiner: Refiner, alpha: float | None = None) -> Float[Tensor, "N C H W"]:
        """The images as a refiner fills them.

        Args:
            refiner: trained on images of this shape.
            alpha: guidance strength; that of the settings when None.
        """
        strength = torch.tensor(self.config.eval_alpha if alpha is None else alpha, device=self.device)
        labels = self.labels.to(self.device)
        parts = []
        for start in range(0, len(labels), _IMAGES_AT_ONCE):
            part = slice(start, start + _IMAGES_AT_ONCE)
            holes, classes = self.holes[part], labels[part]
            given = (self.filled[part], holes.given, classes, holes.level, strength.expand(len(classes)))
            parts.append(refiner.network(*given))
        return self._finished(torch.cat(parts))

    def score(self, images: Float[Tensor, "N C H W"]) -> Scores:
        """How close to the real ones these versions of the held-out images are."""
        if self.judge is None:
            raise ValueError("images of a single class have no judge")
        given = self.holes.given.cpu()
        return score(self.judge, images, self.images, self.labels, given, self.keypatches.patch)

    def measure(self, refiner: Refiner) -> dict[str, float]:
        """The main figures of a refiner, without intervals, for a curve."""
        images = self.refined(refiner)
        measures = {"eval/mse_all": float((images - self.images).square().mean())}
        if self.judge is not None:
            features, truth = self.judge.features(images), self._truth
            measures |= {
                "eval/fd": frechet_distance(features, truth),
                "eval/kid": kernel_distance(features, truth, paired=True),
                "eval/accuracy": float((self.judge.read_class(features).cpu() == self.labels).double().mean()),
            }
        return measures

    def picture(self, methods: Mapping[str, Float[Tensor, "N C H W"]]) -> UInt8[ndarray, "_ _ 3"]:
        """The first images of every class: clean, what is given of them, and as each method fills them."""
        clean = self._pixels(self.images)
        rows = {
            "clean": clean,
            "given": given_patches(clean, self.holes.given[:IMAGES_SHOWN].cpu(), self.keypatches.grid),
        }
        rows |= {name: self._pixels(images) for name, images in methods.items()}
        columns = [self.data.held_out.class_names[label] for label in self.labels[:IMAGES_SHOWN].tolist()]
        return image_grid(list(rows.values()), list(rows), columns)

    @cached_property
    def _truth(self) -> Float[Tensor, "N 64"]:
        """The judge's features of the clean images, which every checkpoint is measured by."""
        assert self.judge is not None
        return self.judge.features(self.images)

    def _pixels(self, images: Tensor) -> Tensor:
        return self.data.to_pixels(images[:IMAGES_SHOWN]).cpu()

    def _finished(self, tokens: Float[Tensor, "N P D"]) -> Float[Tensor, "N C H W"]:
        """Images of these patches, within the range of pixels where they are pixels."""
        images = self.keypatches.to_images(tokens)
        return images.clamp(-1, 1) if self.config.input_space == "pixel" else images
