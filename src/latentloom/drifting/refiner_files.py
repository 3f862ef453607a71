"""A trained refiner in one file that rebuilds it: weights, shape, and the settings that make its input."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.refiner import PatchRefiner, RefinerShape
from latentloom.errors import CheckpointError, FileError
from latentloom.storage import read_module, save_module


class Refiner(NamedTuple):
    """A refiner with what makes its input."""

    network: PatchRefiner
    keypatches: Keypatches


def save_refiner(path: Path | str, refiner: Refiner, config: DriftConfig, record: Mapping[str, Any]) -> None:
    """Write a refiner.

    Args:
        path: ends in .safetensors.
        refiner: of averaged weights.
        config: the training's settings.
        record: how it came about, JSON values.
    """
    settings = {
        "shape": refiner.network.shape.model_dump(mode="json"),
        "image_shape": list(refiner.keypatches.shape),
        "settings": config.model_dump(mode="json"),
    }
    save_module(path, refiner.network.state_dict(), PatchRefiner.__name__, settings, record)


def load_refiner(path: Path | str, device: torch.device | str = "cpu") -> tuple[Refiner, DriftConfig]:
    """A refiner from its file, frozen, and the settings it was trained with.

    Raises:
        FileError: no such file, or a file of something else.
        CheckpointError: its tensors are not those of its shape.
    """
    stored = read_module(path)
    if stored.kind != PatchRefiner.__name__:
        raise FileError(f"{path} holds {stored.kind}; give a refiner that `latentloom drift train` wrote")
    try:
        shape = RefinerShape.model_validate(stored.config["shape"])
        config = DriftConfig.model_validate(stored.config["settings"])
        channels, height, width = stored.config["image_shape"]
    except (KeyError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{path} has settings of no known refiner; train it again") from error
    network = PatchRefiner(shape)
    try:
        network.load_state_dict(stored.tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not hold the tensors of its settings; train it again") from error
    network = network.to(device).eval().requires_grad_(False)
    return Refiner(network, Keypatches(config, (channels, height, width))), config
