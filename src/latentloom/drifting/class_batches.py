"""What a step refines: samples of a few classes with holes in them, the same whatever the number of processes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.config import FieldConfig
from latentloom.drifting.guidance import draw_alpha
from latentloom.drifting.sampler import ClassSampler
from latentloom.runs import process_rank
from latentloom.runs.process_group import num_processes
from latentloom.runs.randomness import step_generator


class Refinable(ABC):
    """Labelled samples that can be loaded and have holes made in them.

    Attributes:
        labels: the class of every sample.
    """

    labels: Int64[Tensor, "N"]

    @abstractmethod
    def load(self, rows: Int64[Tensor, "B"]) -> Tensor:
        """The samples of these numbers, on the device of the training."""

    @abstractmethod
    def draw_holes(self, num: int, generator: torch.Generator) -> Any:
        """Holes for `num` samples, on the CPU; a slice of them and `to(device)` are holes again."""


@dataclass(frozen=True, eq=False)
class ClassBatch:
    """One process's part of a batch: G samples of each of its C classes.

    Attributes:
        number: of the batch, counted from 0; what is drawn for it follows from the seed and this.
        all_classes: the classes of all processes.
        part: which of them are this process's.
        rows: the samples' numbers in the training set, class by class.
        clean: the samples, with nothing missing.
        holes: what is missing of them, of the type that their `Refinable` draws.
        alpha: guidance strength of this process's classes.
        num_gen: samples per class, G.
    """

    number: int
    all_classes: Int64[Tensor, "A"]
    part: slice
    rows: Int64[Tensor, "N"]
    clean: Float[Tensor, "N *shape"]
    holes: Any
    alpha: Float[Tensor, "C"]
    num_gen: int

    @property
    def classes(self) -> Int64[Tensor, "C"]:
        """This process's classes."""
        return self.all_classes[self.part]

    @property
    def all_sample_classes(self) -> Int64[Tensor, "M"]:
        """The class of each sample of all processes, in their order."""
        return self.all_classes.repeat_interleave(self.num_gen)

    @property
    def sample_classes(self) -> Int64[Tensor, "N"]:
        """The class of each sample."""
        return self.classes.repeat_interleave(self.num_gen).to(self.clean.device)

    @property
    def sample_alpha(self) -> Float[Tensor, "N"]:
        """The guidance strength of each sample."""
        return self.alpha.repeat_interleave(self.num_gen).to(self.clean.device)


class ClassBatches:
    """Deals batches; every process plans those of all and loads its own part.

    Args:
        samples: to train on.
        config: counts and guidance.
        seed: of all draws.
        device: where the holes go.
    """

    def __init__(self, samples: Refinable, config: FieldConfig, seed: int, device: torch.device) -> None:
        self.samples = samples
        self.config = config
        self.seed = seed
        self.device = device
        self.sampler = ClassSampler(samples.labels, seed)

    def next(self, number: int) -> ClassBatch:
        """The batch of that number; batches are taken in their order, since the sampler goes on with each."""
        config, num_gen = self.config, self.config.n_gen_per_class
        generator = step_generator(self.seed, number, "batch")
        all_classes = self.sampler.next_classes(config.n_classes_step * num_processes())
        rows = self.sampler.next_indices(all_classes, num_gen)
        holes = self.samples.draw_holes(rows.numel(), generator)
        alpha = draw_alpha(
            len(all_classes),
            generator,
            values=config.cfg_alpha_values,
            probs=config.cfg_alpha_probs,
            alpha_max=config.cfg_alpha_max,
            power=config.cfg_alpha_power,
        )
        part = slice(process_rank() * config.n_classes_step, (process_rank() + 1) * config.n_classes_step)
        own = slice(part.start * num_gen, part.stop * num_gen)
        own_rows, own_holes = rows[part].flatten(), holes[own].to(self.device)
        return ClassBatch(
            number, all_classes, part, own_rows, self.samples.load(own_rows), own_holes, alpha[part], num_gen
        )
