"""A checkpoint rewritten in another layout, bit for bit.

Only names change: every tensor keeps its values, type and shape. What the target layout has no place for (configs,
the sampler, the model's key) goes into `latentloom.json` beside the weights and is read back from there, so that two
conversions give back what there was.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from latentloom.errors import CheckpointError, ConfigError, FileError, LatentLoomError
from latentloom.storage import replace_folder, write_json
from latentloom.wan.checkpoints import build_empty
from latentloom.wan.keys_transformer import official_transformer_config
from latentloom.wan.layouts import (
    EXPERT_FOLDERS,
    SIDECAR,
    SPIECE_KEY,
    Checkpoint,
    Component,
    Layout,
    component_name,
    recognise,
)
from latentloom.wan.shards import read_json
from latentloom.wan.write import OnBytes, Renaming, as_bytes, write_pickle, write_safetensors, write_shards

log = logging.getLogger(__name__)


def convert(
    source: Path,
    target: Path,
    layout: Layout,
    *,
    expert: str | None = None,
    lender: Path | None = None,
    overwrite: bool = False,
    on_bytes: OnBytes = lambda num_bytes: None,
) -> Checkpoint:
    """The same models in another layout at `target`, which appears whole or not at all.

    Args:
        source: a checkpoint in any layout; a single file holds fewer models, and so will the target.
        target: the folder to make.
        layout: "official", "diffusers" or "comfy".
        expert: of a pair, convert only "high" or "low"; of a single file, which of the two it is.
        lender: the checkpoint that a single text encoder was trained from; lends its tokenizer and config.
        overwrite: replace the checkpoint that is at `target`.
        on_bytes: called with the number of bytes written, as they are written.

    Raises:
        ConfigError: no such layout or expert.
        FileError: `target` exists, or is no place to write to.
        CheckpointError: the source is not complete or has tensors that no layout knows.
    """
    if layout not in get_args(Layout):
        raise ConfigError(f"no layout is called {layout!r}; choose official, diffusers or comfy")
    found = recognise(source)
    if lender is not None:
        found = _lend(found, recognise(lender))
    components = choose(found, expert)
    _refuse_target(Path(source), Path(target), overwrite)
    for component in components:
        build_empty(component)
    with replace_folder(target) as folder:
        for component in components:
            log.info("writing the %s", component.title)
            _WRITERS[layout](folder, component, found, on_bytes)
        _write_configs(folder, found, components, layout)
        _copy_tokenizer(folder, found, components, layout)
    return recognise(target)


def choose(found: Checkpoint, expert: str | None) -> list[Component]:
    """The models to convert; raises ConfigError or CheckpointError when the expert is not there.

    Args:
        expert: see convert.
    """
    if expert is None:
        return list(found.components)
    if expert not in EXPERT_FOLDERS:
        raise ConfigError(f"no expert is called {expert!r}; choose high or low")
    if not found.experts:
        found.component("transformer")
        return [replace(part, expert=expert) if part.role == "transformer" else part for part in found.components]
    found.component("transformer", expert)
    return [part for part in found.components if part.expert in (None, expert)]


def _lend(found: Checkpoint, lender: Checkpoint) -> Checkpoint:
    """What a single file cannot hold, from the checkpoint it was trained from."""
    lent = lender.component("text_encoder")
    components = []
    for part in found.components:
        if part.role == "text_encoder":
            _refuse_another_encoder(part, lent)
            if part.given_config is None:
                part = replace(part, given_config=lent.given_config)
        components.append(part)
    return replace(found, components=tuple(components), tokenizer=found.tokenizer or lender.tokenizer, lender=lender)


def _refuse_another_encoder(part: Component, lent: Component) -> None:
    for name, value in lent.derived_config.items():
        if part.derived_config[name] != value:
            raise CheckpointError(
                f"{part.shards.files[0]}: its text encoder has {name} = {part.derived_config[name]} and that of "
                f"{lent.shards.files[0]} {value}; give the checkpoint that it was trained from"
            )


def _write_official(folder: Path, component: Component, found: Checkpoint, on_bytes: OnBytes) -> None:
    renaming = _renaming(component, {name: component.key_map.to_official(name) for name in component.names})
    if component.role == "transformer":
        place = folder / EXPERT_FOLDERS[component.expert] if component.expert else folder
        place.mkdir(exist_ok=True)
        write_shards(place, "diffusion_pytorch_model", renaming, on_bytes)
        write_json(place / "config.json", official_transformer_config({**component.derived_config, **component.config}))
    elif component.role == "text_encoder":
        write_pickle(folder / "models_t5_umt5-xxl-enc-bf16.pth", renaming, on_bytes)
    else:
        write_pickle(folder / f"Wan{_vae_version(component)}_VAE.pth", renaming, on_bytes)


def _write_diffusers(folder: Path, component: Component, found: Checkpoint, on_bytes: OnBytes) -> None:
    place = folder / component_name(component.role, component.expert)
    place.mkdir()
    stem = "model" if component.role == "text_encoder" else "diffusion_pytorch_model"
    write_shards(place, stem, _renaming(component, {name: name for name in component.names}), on_bytes)
    write_json(place / "config.json", {**_CLASS_ENTRIES[component.role], **component.config})


def _write_comfy(folder: Path, component: Component, found: Checkpoint, on_bytes: OnBytes) -> None:
    """Bare names, as in ComfyUI's own repackaged files; its text encoder keeps transformers' names."""
    if component.role == "text_encoder":
        file, names = folder / "text_encoders" / "umt5_xxl.safetensors", {name: name for name in component.names}
    else:
        names = {name: component.key_map.to_official(name) for name in component.names}
        key = found.facts.key if found.facts else "unknown"
        suffix = f"_{component.expert}_noise" if component.expert else ""
        file = folder / "diffusion_models" / f"wan_{key}{suffix}.safetensors"
    if component.role == "vae":
        file = folder / "vae" / f"wan{_vae_version(component)}_vae.safetensors"
    file.parent.mkdir(exist_ok=True)
    made = (
        {SPIECE_KEY: piece}
        if component.role == "text_encoder" and (piece := _sentence_piece(found)) is not None
        else {}
    )
    write_safetensors(file, replace(_renaming(component, names), made=made), on_bytes)


_WRITERS = {"official": _write_official, "diffusers": _write_diffusers, "comfy": _write_comfy}


def _renaming(component: Component, targets: Mapping[str, str | None]) -> Renaming:
    """Stored keys with the prefix -> keys to write.

    Args:
        targets: key to write by the name in diffusers or transformers.
    """
    nameless = [name for name, target in targets.items() if target is None]
    if nameless:
        raise CheckpointError(
            f"{component.shards.files[0]}: {len(nameless)} tensors of the {component.title} have no name in the "
            f"official layout, first {nameless[0]}"
        )
    keys = {component.prefix + component.names[name]: target for name, target in targets.items() if target is not None}
    return Renaming(component.shards, keys, {})


def _write_configs(folder: Path, found: Checkpoint, components: Sequence[Component], layout: Layout) -> None:
    index = found.record if found.layout == "diffusers" else found.record.get("model_index", {})
    scheduler = found.root / "scheduler" / "scheduler_config.json"
    sampler = read_json(scheduler) if scheduler.is_file() else found.record.get("scheduler", {})
    if layout == "diffusers":
        write_json(folder / "model_index.json", _model_index(found, components, index))
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", sampler or _scheduler_config(found))
        return
    record: dict[str, Any] = {
        "components": {component_name(part.role, part.expert): part.config for part in components},
        "model_index": index,
        "scheduler": sampler,
    }
    if found.declared_model:
        record["model"] = found.declared_model
    write_json(folder / SIDECAR, record)


def _model_index(found: Checkpoint, components: Sequence[Component], known: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers' WanPipeline.from_pretrained reads first."""
    boundary = found.facts.boundary if found.facts else None
    index: dict[str, Any] = {
        "_class_name": "WanPipeline",
        "boundary_ratio": boundary,
        # TI2V-5B takes one timestep per latent token.
        "expand_timesteps": bool(found.facts and found.facts.key == "ti2v-5b"),
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        **known,
    }
    present = {component_name(part.role, part.expert): part.role for part in components}
    for name in ("text_encoder", "transformer", "transformer_2", "vae"):
        index[name] = _CLASSES[present[name]] if name in present else [None, None]
    if found.declared_model:
        index["latentloom"] = {"model": found.declared_model}
    return index


_CLASSES = {
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
_CLASS_ENTRIES: dict[str, dict[str, Any]] = {
    "text_encoder": {"architectures": ["UMT5EncoderModel"], "model_type": "umt5"},
    "transformer": {"_class_name": "WanTransformer3DModel"},
    "vae": {"_class_name": "AutoencoderKLWan"},
}


def _scheduler_config(found: Checkpoint) -> dict[str, Any]:
    return {
        "_class_name": "UniPCMultistepScheduler",
        "flow_shift": found.facts.shift if found.facts else 5.0,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
    }


def _copy_tokenizer(folder: Path, found: Checkpoint, components: Sequence[Component], layout: Layout) -> None:
    place = folder / ("google/umt5-xxl" if layout == "official" else "tokenizer")
    if found.tokenizer is not None:
        shutil.copytree(found.tokenizer, place)
        return
    piece = _sentence_piece(found)
    if piece is not None and layout != "comfy" and any(part.role == "text_encoder" for part in components):
        place.mkdir(parents=True)
        (place / "spiece.model").write_bytes(as_bytes(piece))


def _sentence_piece(found: Checkpoint) -> Tensor | None:
    """The SentencePiece model as ComfyUI's text encoder files carry it: one tensor of bytes."""
    for component in found.components:
        key = component.prefix + SPIECE_KEY
        if component.role == "text_encoder" and key in component.shards.tensors:
            return next(tensor.clone() for _, tensor in component.shards.read([key]))
    file = found.tokenizer / "spiece.model" if found.tokenizer else None
    if file is None or not file.is_file():
        return None if found.lender is None else _sentence_piece(found.lender)
    return torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)


def _vae_version(component: Component) -> str:
    return "2.2" if component.derived_config["is_residual"] else "2.1"


def _refuse_target(source: Path, target: Path, overwrite: bool) -> None:
    here, there = source.resolve(), target.resolve()
    if here == there or there in here.parents:
        raise FileError(f"{target} holds the source {source}; give another folder")
    if here in there.parents:  # it could take the place of a part of what is being read
        raise FileError(f"{target} lies inside the source {source}; give a folder outside it")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FileError(f"{target} exists; give another folder, or --overwrite to replace the checkpoint there")
    try:
        recognise(target)
    except LatentLoomError as cause:
        raise FileError(f"{target} exists and is no checkpoint, so it is not replaced; give another folder") from cause
