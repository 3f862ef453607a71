"""What a checkpoint is, told without loading it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latentloom.wan.layouts import Component, recognise


@dataclass(frozen=True)
class ModelSummary:
    """One model of a checkpoint: what it is and how large.

    Attributes:
        dtypes: number of values by stored type, in safetensors' names.
        dims: its sizes, as the class that holds it names them.
        left_over: stored keys that no Wan model has.
    """

    role: str
    expert: str | None
    naming: str
    files: tuple[str, ...]
    num_tensors: int
    num_parameters: int
    dtypes: dict[str, int]
    dims: dict[str, Any]
    left_over: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSummary:
    """What a checkpoint is, read from headers and configs alone."""

    path: str
    layout: str
    model: str | None
    title: str
    is_known: bool
    experts: tuple[str, ...]
    num_parameters: int
    has_tokenizer: bool
    models: tuple[ModelSummary, ...]

    def as_dict(self) -> dict[str, Any]:
        """The summary as plain lists and dictionaries."""
        return asdict(self)


def inspect(root: Path) -> CheckpointSummary:
    """What a checkpoint is: layout, models, sizes, types, and which known model; no weights are read.

    Raises:
        FileError: there is nothing at the path.
        CheckpointError: nothing of the Wan family is there.
        CorruptFileError: a file is damaged.
    """
    found = recognise(root)
    models = tuple(_summarise(component, found.root) for component in found.components)
    return CheckpointSummary(
        path=str(found.root),
        layout=found.layout,
        model=found.facts.key if found.facts else None,
        title=found.facts.title if found.facts else "no transformer here",
        is_known=found.is_known,
        experts=found.experts,
        num_parameters=sum(model.num_parameters for model in models),
        has_tokenizer=found.tokenizer is not None,
        models=models,
    )


def _summarise(component: Component, root: Path) -> ModelSummary:
    dtypes: dict[str, int] = {}
    for tensor in component.stored.values():
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.num_elements
    base = root if root.is_dir() else root.parent
    return ModelSummary(
        role=component.role,
        expert=component.expert,
        naming=component.naming,
        files=tuple(str(file.relative_to(base)) for file in component.shards.files),
        num_tensors=len(component.names),
        num_parameters=sum(component.stored[key].num_elements for key in component.names.values()),
        dtypes=dtypes,
        dims=component.derived_config,
        left_over=tuple(component.left_over),
    )
