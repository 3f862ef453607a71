"""What a step refines: images of a few classes with holes in them, the same whatever the number of processes."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Holes, Keypatches
from latentloom.drifting.guidance import draw_alpha
from latentloom.drifting.images import Images
from latentloom.drifting.processes import num_processes
from latentloom.drifting.randomness import step_generator
from latentloom.drifting.sampler import ClassSampler
from latentloom.runs import process_rank


@dataclass(frozen=True, eq=False)
class ClassBatch:
    """One process's part of a batch: G images of each of its C classes.

    Attributes:
        number: of the batch, counted from 0; what is drawn for it follows from the seed and this.
        all_classes: the classes of all processes.
        part: which of them are this process's.
        images: clean images, class by class.
        holes: which patches of them are given.
        alpha: guidance strength of this process's classes.
        num_gen: images per class, G.
    """

    number: int
    all_classes: Int64[Tensor, "A"]
    part: slice
    images: Float[Tensor, "N _ _ _"]
    holes: Holes
    alpha: Float[Tensor, "C"]
    num_gen: int

    @property
    def classes(self) -> Int64[Tensor, "C"]:
        """This process's classes."""
        return self.all_classes[self.part]

    @property
    def all_image_classes(self) -> Int64[Tensor, "M"]:
        """The class of each image of all processes, in their order."""
        return self.all_classes.repeat_interleave(self.num_gen)

    @property
    def image_classes(self) -> Int64[Tensor, "N"]:
        """The class of each image."""
        return self.classes.repeat_interleave(self.num_gen).to(self.images.device)

    @property
    def image_alpha(self) -> Float[Tensor, "N"]:
        """The guidance strength of each image."""
        return self.alpha.repeat_interleave(self.num_gen).to(self.images.device)


class ClassBatches:
    """Deals batches; every process plans those of all and loads its own part.

    Args:
        images: to train on.
        keypatches: makes the holes.
        config: counts and guidance.
        seed: of all draws.
        device: where the images go.
    """

    def __init__(
        self, images: Images, keypatches: Keypatches, config: DriftConfig, seed: int, device: torch.device
    ) -> None:
        self.images = images
        self.keypatches = keypatches
        self.config = config
        self.seed = seed
        self.device = device
        self.sampler = ClassSampler(images.labels, seed)

    def next(self, number: int) -> ClassBatch:
        """The batch of that number; batches are taken in their order, since the sampler goes on with each."""
        config = self.config
        generator = step_generator(self.seed, number, "batch")
        all_classes = self.sampler.next_classes(config.n_classes_step * num_processes())
        rows = self.sampler.next_indices(all_classes, config.n_gen_per_class)
        holes = self.keypatches.draw_holes(rows.numel(), generator)
        alpha = draw_alpha(
            len(all_classes),
            generator,
            values=config.cfg_alpha_values,
            probs=config.cfg_alpha_probs,
            alpha_max=config.cfg_alpha_max,
            power=config.cfg_alpha_power,
        )
        part = slice(process_rank() * config.n_classes_step, (process_rank() + 1) * config.n_classes_step)
        own = slice(part.start * config.n_gen_per_class, part.stop * config.n_gen_per_class)
        images = self.images.load(rows[part].flatten())
        return ClassBatch(
            number, all_classes, part, images, holes[own].to(self.device), alpha[part], config.n_gen_per_class
        )
