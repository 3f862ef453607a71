"""Exports of a bridge: the trained parts alone, and what is needed to put them on their backbone again."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor

from latentloom.bridge.backbone import Backbone, load_backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.records import KIND, BackboneRecord, ExportRecord, TrainingRecord, parse_export_record
from latentloom.bridge.sharding import whole_tensors
from latentloom.errors import CheckpointError, ConfigError, FileError
from latentloom.runs import choose_device, process_rank
from latentloom.storage import atomic_write, read_header, read_pt
from latentloom.storage.modules import read_tensors
from latentloom.training import TrainedWeights

METADATA_KEY = "latentloom"
EXPORT = re.compile(r"checkpoint_step_(\d+)\.(?:safetensors|pt)")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def export_bridge(folder: Path, step: int, bridge: LatentBridge, training: Mapping[str, Any]) -> Path:
    """Write `checkpoint_step_<step>.safetensors` and, for the document's readers, the same as `.pt`; gives the first.

    Every process of a run calls it and the first one writes: sharded weights are put together from all of them.

    Args:
        folder: of the run.
        step: completed steps.
        bridge: whose trained parts are written, in float32, with the standardizers.
        training: how it was trained, as JSON values.

    Raises:
        FileError: the folder cannot be written to.
    """
    path = folder / f"checkpoint_step_{step}.safetensors"
    whole = whole_tensors(_trained(bridge))
    if process_rank() != 0:
        return path
    weights = {name: value.float().contiguous() for name, value in whole.items()}
    about = ExportRecord(
        kind=KIND,
        step=step,
        latent_dim=bridge.latent_dim,
        layers=bridge.layers,
        backbone=BackboneRecord(name=bridge.backbone.name, fingerprint=bridge.backbone.fingerprint),
        model=_stated_settings(bridge.config, weights),
        training=TrainingRecord.model_validate(training),
        encoder=bridge.vector_encoder,
        versions={name: version(name) for name in ("latentloom", "torch", "transformers")},
    ).model_dump_json()
    with atomic_write(path) as temporary:
        save_file(weights, temporary, metadata={METADATA_KEY: about})
    with atomic_write(path.with_suffix(".pt")) as temporary:
        # plain tensors and a JSON text: any torch reads it with weights_only=True
        torch.save({"state_dict": weights, METADATA_KEY: about}, temporary)
    return path


def load_bridge(
    path: Path | str,
    *,
    device: str | torch.device | None = None,
    dtype: str = "bf16",
    local_dir: Path | None = None,
) -> LatentBridge:
    """A trained bridge on its backbone, for use; nothing of it is trainable.

    It says what it was trained for: `.task`, and `.vector_encoder` where that is known.

    Args:
        path: an export, or the folder of a run, whose newest export is taken.
        device: the best there is when None.
        dtype: of the backbone: bf16, fp16 or fp32.
        local_dir: folder of the backbone's files, when they are not where its name says.

    Raises:
        ConfigError: an unknown dtype or device.
        FileError: there is no export, or the backbone's files are not here.
        CorruptFileError: it is damaged.
        CheckpointError: it is something else, or was made on another backbone than the one found here.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}; give one of {', '.join(DTYPES)}")
    path = export_file(path)
    weights, about = read_export(path)
    config = about.model.model_copy(update={"encoder_layers": about.layers})
    backbone = _backbone_of(about, local_dir, choose_device(device and str(device)), DTYPES[dtype])
    if backbone.fingerprint != about.backbone.fingerprint:
        raise CheckpointError(
            f"{path} was trained on {about.backbone.name} {about.backbone.fingerprint}, and the weights here are "
            f"{backbone.fingerprint}; give the folder of those that it was trained on"
        )
    bridge = LatentBridge(backbone, config, about.latent_dim)
    try:
        _fill(bridge, {name: value.to(bridge.device) for name, value in weights.items()})
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} does not fit the settings that it states; export it again") from error
    bridge.task, bridge.vector_encoder = about.training.task, about.encoder
    return bridge.eval().requires_grad_(False)


def read_export(path: Path) -> tuple[dict[str, Tensor], ExportRecord]:
    """The trained tensors of an export, and what it says about them.

    Raises:
        FileError: no such file.
        CorruptFileError: a damaged one.
        CheckpointError: no bridge.
    """
    if path.suffix != ".pt":
        about = read_export_record(path)
        return read_tensors(path), about
    content = read_pt(path)
    weights, stated = (content.get(key) for key in ("state_dict", METADATA_KEY)) if _is_table(content) else (None, None)
    if not _is_table(weights) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{path} holds no tensors of a bridge; give a checkpoint_step_<N>.safetensors")
    return weights, parse_export_record(stated if isinstance(stated, str) else "", path)


def read_export_record(path: Path | str) -> ExportRecord:
    """What an export says about itself, without its tensors.

    Args:
        path: as for `load_bridge`.

    Raises:
        FileError, CorruptFileError, CheckpointError: as `read_export`.
    """
    path = export_file(path)
    if path.suffix == ".pt":
        return read_export(path)[1]  # whose tensors stay in the file
    return parse_export_record(read_header(path).get("__metadata__", {}).get(METADATA_KEY, ""), path)


def export_file(path: Path | str) -> Path:
    """The export that is meant: the file itself, or of a run's folder the one of the most steps.

    Raises:
        FileError: the folder holds none.
    """
    return newest_export(Path(path)) if Path(path).is_dir() else Path(path)


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
    """Both parts whatever the task, and what is trained of the backbone; weights with two names under the first."""
    state = TrainedWeights(bridge).state_dict()
    for name in ("standardizer", "latent_prefix", "text_to_latent"):
        part = getattr(bridge, name).state_dict()
        state |= {f"{name}.{key}": value for key, value in part.items()}
    for tied in _second_names(bridge) & state.keys():
        del state[tied]
    if _has_adapter(state):
        return state
    # an adapter that is not trained changes nothing: the names are those of layers without one
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}


def _stated_settings(config: ModelConfig, names: Iterable[str]) -> ModelConfig:
    """The settings that give modules with just these weights: a task may leave the adapter as it was."""
    changes: dict[str, Any] = {"pretrained_local_dir": None}
    if not _has_adapter(names):
        changes["lora"] = LoraConfig(rank=0)
    return config.model_copy(update=changes)


def _fill(bridge: LatentBridge, weights: Mapping[str, Tensor]) -> None:
    """Put exported weights in their places; raises ValueError or RuntimeError where they are of another bridge."""
    if missing := _trained(bridge).keys() - weights.keys():
        raise ValueError(f"{len(missing)} weights are missing, such as {min(missing)}")
    if unknown := bridge.load_state_dict(weights, strict=False).unexpected_keys:
        raise ValueError(f"{len(unknown)} weights are unknown, such as {unknown[0]}")


def _backbone_of(about: ExportRecord, local_dir: Path | None, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone that an export names, by the name it has there; from `local_dir` where that is given."""
    config = about.model
    if local_dir is not None:
        config = config.model_copy(update={"pretrained_model_name_or_path": str(local_dir)})
    return replace(load_backbone(config, device=device, dtype=dtype), name=about.backbone.name)


def _second_names(bridge: LatentBridge) -> set[str]:
    """Names of weights that have another one before it, such as an output layer tied to the embeddings."""
    first = {name for name, _ in bridge.named_parameters()}
    return {name for name, _ in bridge.named_parameters(remove_duplicate=False)} - first


def _has_adapter(names: Iterable[str]) -> bool:
    return any(".lora_" in name for name in names)


def _is_table(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict)
