"""The evaluation that every encoder and quantizer goes through: figures, plots and pictures in one folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from latentloom.drifting.config import FieldConfig
from latentloom.drifting.representation.families import Families, prompt_families
from latentloom.drifting.representation.kernel import KernelView, view_kernel
from latentloom.drifting.representation.occupancy import Occupancy, occupancy
from latentloom.drifting.representation.reading import Reading, read_off
from latentloom.drifting.representation.retrieval import agreement, class_consistency, nearest_neighbours
from latentloom.drifting.representation.separation import sampled_separation
from latentloom.drifting.representation.subject import Subject

TEMPERATURES: tuple[float, ...] = FieldConfig.model_fields["temperatures"].default
NUM_NEIGHBOURS = 10
NUM_AGREEING = 5  # neighbours whose prompts and keyframes are compared with the query's


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a representation came to.

    Attributes:
        subject: what was evaluated.
        occupied: of all samples.
        separation, retrieval, agreement, kernel: figures by name; empty where they are not defined.
        view: distances of the kernel; None where it is not defined.
        families: of the prompts; None without prompts.
        neighbours: nearest first.
        readings: what follows, by stated rules.
        missing: what could not be had, and why.
    """

    subject: Subject
    occupied: Occupancy
    separation: dict[str, float]
    retrieval: dict[str, float]
    agreement: dict[str, float]
    kernel: dict[str, float]
    view: KernelView | None
    families: Families | None
    neighbours: Int64[Tensor, "N _"]
    readings: list[Reading]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """All figures, as JSON values."""
        families = None
        if self.families is not None:
            sizes = torch.bincount(self.families.labels, minlength=len(self.families.names)).tolist()
            families = [{"name": name, "size": size} for name, size in zip(self.families.names, sizes, strict=True)]
        return {
            "representation": self.subject.name,
            "data": self.subject.data,
            "num_sampled": len(self.subject.vectors),
            "occupancy": asdict(self.occupied),
            "separation": self.separation,
            "retrieval": self.retrieval,
            "agreement": self.agreement,
            "kernel": self.kernel,
            "families": families,
            "readings": [reading._asdict() for reading in self.readings],
            "missing": list(self.missing),
        }


def evaluate_representation(
    subject: Subject, *, are_pseudo_classes: bool, temperatures: Sequence[float] = TEMPERATURES, seed: int = 0
) -> Evaluation:
    """All figures of a representation.

    Args:
        subject: vectors with classes.
        are_pseudo_classes: quantised from the vectors themselves, and not labels.
        temperatures: of the drifting kernel, in mean distances.
        seed: of all samples.

    Source: the document, "Mandatory Representation Evaluation".
    """
    vectors, labels, missing = subject.vectors, subject.labels, list(subject.missing)
    separation = sampled_separation(vectors, labels, seed=seed)
    if separation is None:
        missing.append("Fewer than two classes have two members in the sample: no separation.")
    neighbours = nearest_neighbours(vectors, NUM_NEIGHBOURS)
    families = None
    if subject.texts is not None and subject.prompts is not None:
        families = prompt_families(subject.texts, subject.prompts, seed=seed)
    retrieval = class_consistency(labels, neighbours)
    if families is not None:
        of_families = class_consistency(families.labels, neighbours, (5,))
        retrieval |= {f"families/{name}": value for name, value in of_families.items()}
    agreeing = agreement(neighbours[:, :NUM_AGREEING], subject.texts, subject.keyframes, peak=subject.peak, seed=seed)
    view = view_kernel(vectors, labels, temperatures, seed=seed)
    kernel = {} if view is None else {**view.statistics, "num_targets": float(view.num_targets)}
    if view is None:
        missing.append("No two classes with three members in the sample: no kernel diagnostics.")
    occupied = occupancy(subject.counts)
    figures = {"separation": separation or {}, "retrieval": retrieval, "agreement": agreeing, "kernel": kernel}
    readings = read_off(figures, occupied, are_pseudo_classes=are_pseudo_classes)
    return Evaluation(
        subject=subject,
        occupied=occupied,
        separation=separation or {},
        retrieval=retrieval,
        agreement=agreeing,
        kernel=kernel,
        view=view,
        families=families,
        neighbours=neighbours,
        readings=readings,
        missing=tuple(missing),
    )
