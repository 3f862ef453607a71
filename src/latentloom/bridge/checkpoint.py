"""Exports of a bridge: the trained parts alone, and what is needed to put them on their backbone again."""

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.config import ModelConfig
from latentloom.bridge.model import LatentBridge
from latentloom.errors import CheckpointError, FileError
from latentloom.runs import choose_device
from latentloom.storage import atomic_write, read_header, read_pt
from latentloom.training import TrainedWeights

KIND = "latentloom.bridge"
EXPORT = re.compile(r"checkpoint_step_(\d+)\.(?:safetensors|pt)")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_bridge(folder: Path, step: int, bridge: LatentBridge, training: Mapping[str, Any]) -> Path:
    """Write `checkpoint_step_<step>.safetensors` and, for the document's readers, the same as `.pt`; gives the first.

    Args:
        folder: of the run.
        step: completed steps.
        bridge: whose trained parts are written, in float32, with the standardizers.
        training: how it was trained, as JSON values.

    Raises:
        FileError: the folder cannot be written to.
    """
    weights = {name: value.detach().float().cpu().contiguous() for name, value in _trained(bridge).items()}
    about = {
        "kind": KIND,
        "step": step,
        "latent_dim": bridge.latent_dim,
        "layers": list(bridge.layers),
        "backbone": {"name": bridge.backbone.name, "fingerprint": bridge.backbone.fingerprint},
        "model": bridge.config.model_dump(mode="json", exclude={"pretrained_local_dir"}),
        "training": dict(training),
        "versions": {name: version(name) for name in ("latentloom", "torch", "transformers")},
    }
    path = folder / f"checkpoint_step_{step}.safetensors"
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={"latentloom": json.dumps(about)})
    with atomic_write(path.with_suffix(".pt")) as temporary:
        # plain tensors and a JSON text: any torch reads it with weights_only=True
        torch.save({"state_dict": weights, "latentloom": json.dumps(about)}, temporary)
    return path


def load_bridge(
    path: Path | str,
    *,
    device: str | torch.device | None = None,
    dtype: str = "bf16",
    local_dir: Path | None = None,
) -> LatentBridge:
    """A trained bridge on its backbone, for use; nothing of it is trainable.

    Args:
        path: an export, or the folder of a run, whose newest export is taken.
        device: the best there is when None.
        dtype: of the backbone: bf16, fp16 or fp32.
        local_dir: where the backbone's files lie, when not where its name says.

    Raises:
        FileError: there is no export, or the backbone's files are not here.
        CorruptFileError: it is damaged.
        CheckpointError: it is something else, or was made on another backbone than the one found here.
    """
    path = newest_export(Path(path)) if Path(path).is_dir() else Path(path)
    weights, about = read_export(path)
    try:
        values = about["model"] | {"encoder_layers": about["layers"], "pretrained_local_dir": local_dir}
        config = ModelConfig.model_validate(values)
    except (ValidationError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} states no settings that this version knows; export it again") from error
    backbone = load_backbone(config, device=choose_device(device and str(device)), dtype=DTYPES[dtype])
    if backbone.fingerprint != about["backbone"]["fingerprint"]:
        raise CheckpointError(
            f"{path} was trained on {about['backbone']['name']} {about['backbone']['fingerprint']}, and the weights "
            f"here are {backbone.fingerprint}; give the folder of those that it was trained on"
        )
    bridge = LatentBridge(backbone, config, int(about["latent_dim"]))
    try:
        TrainedWeights(bridge).load_state_dict({name: value.to(bridge.device) for name, value in weights.items()})
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the settings that it states; export it again") from error
    return bridge.eval().requires_grad_(False)


def read_export(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The trained tensors of an export, and what is known about them.

    Raises:
        FileError: no such file.
        CorruptFileError: a damaged one.
        CheckpointError: no bridge.
    """
    if path.suffix == ".pt":
        content = read_pt(path)
        weights, stated = content.get("state_dict"), content.get("latentloom")
    else:
        stated = read_header(path).get("__metadata__", {}).get("latentloom")
        weights = load_file(path)
    about = json.loads(stated) if isinstance(stated, str) else {}
    if about.get("kind") != KIND or not isinstance(weights, dict):
        raise CheckpointError(f"{path} is no export of a bridge; give a checkpoint_step_<N>.safetensors")
    return weights, about


def newest_export(folder: Path) -> Path:
    """The export of the most steps in a run's folder.

    Raises:
        FileError: there is none.
    """
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := EXPORT.fullmatch(path.name))]
    if not found:
        raise FileError(f"{folder} holds no checkpoint_step_<N>.safetensors; give the folder of a run, or an export")
    steps = max(step for step, _ in found)
    safe = folder / f"checkpoint_step_{steps}.safetensors"
    return safe if safe.exists() else safe.with_suffix(".pt")


def _trained(bridge: LatentBridge) -> dict[str, Tensor]:
    """Both parts whatever the task, and what is trained of the backbone."""
    state = TrainedWeights(bridge).state_dict()
    for name in ("standardizer", "latent_prefix", "text_to_latent"):
        part = getattr(bridge, name).state_dict()
        state |= {f"{name}.{key}": value for key, value in part.items()}
    return state
