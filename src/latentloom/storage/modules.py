"""Safetensors files that say which class, with which settings, their tensors rebuild."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage.atomic import atomic_write
from latentloom.storage.header import read_header

METADATA_KEY = "latentloom"
RECORDED_VERSIONS = ("latentloom", "torch", "safetensors")


class StoredModule(NamedTuple):
    """What a file rebuilds: its tensors, the class they belong to, that class's settings, and how they came about."""

    tensors: dict[str, Tensor]
    kind: str
    config: dict[str, Any]
    record: dict[str, Any] | None


@dataclass(frozen=True)
class Origin:
    """The metadata of a file that this package wrote."""

    kind: str
    config: dict[str, Any]
    versions: dict[str, str]
    record: dict[str, Any] | None


def save_module(
    path: Path | str,
    module_tensors: Mapping[str, Tensor],
    kind: str,
    config: Mapping[str, Any],
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors with all that is needed to rebuild their module.

    Args:
        path: the safetensors file.
        module_tensors: a state dict; tensors that share memory are written once per name.
        kind: name of the class that takes `config`.
        config: its settings, JSON values.
        record: how the tensors came about (the training record), JSON values.
    """
    metadata = {
        "class": kind,
        "config": dict(config),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in RECORDED_VERSIONS}},
        "record": None if record is None else dict(record),
    }
    with atomic_write(path) as temporary:
        save_file(_unshared(module_tensors), temporary, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)})


def read_module(path: Path | str) -> StoredModule:
    """The tensors of a file that `save_module` wrote, with kind, config and record.

    Raises:
        FileError: no such file, or not one of this package's.
        CorruptFileError: damaged.
    """
    origin = read_origin(path)
    return StoredModule(read_tensors(path), origin.kind, origin.config, origin.record)


def read_origin(path: Path | str) -> Origin:
    """Kind, config, versions and record of a file, from its header alone.

    Raises:
        FileError: no such file, or safetensors that this package did not write.
        CorruptFileError: damaged.
    """
    text = read_header(path).get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        raise FileError(f"{path} does not say what it rebuilds; give a file that latentloom wrote")
    try:
        metadata = json.loads(text)
        kind, config, versions, record = (metadata[key] for key in ("class", "config", "versions", "record"))
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{path} is damaged: what it says about itself cannot be read") from error
    if not (
        isinstance(kind, str)
        and isinstance(config, dict)
        and isinstance(versions, dict)
        and isinstance(record, dict | None)
    ):
        raise CorruptFileError(f"{path} is damaged: what it says about itself has the wrong types")
    return Origin(kind, config, versions, record)


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        FileError: no such file.
        CorruptFileError: damaged.
    """
    read_header(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptFileError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # safetensors refuses tensors that share memory; tied weights are written under each of their names
    seen: set[int] = set()
    unshared = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu", memory_format=torch.contiguous_format).contiguous()
        address = tensor.untyped_storage().data_ptr()
        unshared[name] = tensor.clone() if address in seen else tensor
        seen.add(address)
    return unshared
