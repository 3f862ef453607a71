"""Adapters on disk: safetensors that say how they came about, and the document's `.pt`, read without running code."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.errors import CheckpointError, FileError
from latentloom.storage import atomic_write, read_module, read_pt, save_module
from latentloom.storage.modules import StoredModule

ADAPTER_NAME = "embdelta_adapter"
_KIND = EmbeddingDelta.__name__


def save_adapter(path: Path | str, adapter: EmbeddingDelta, record: Mapping[str, Any] | None = None) -> None:
    """Write an adapter with its settings and the record of its training, exactly.

    Args:
        path: ends in .safetensors or .pt.
        adapter: what to write.
        record: how it was trained, JSON values.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
    """
    config = adapter.config.model_dump(mode="json")
    if _suffix(path) == ".safetensors":
        save_module(path, adapter.state_dict(), _KIND, config, record)
        return
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    about = {"class": _KIND, "config": json.dumps(config), "record": json.dumps(record)}
    with atomic_write(path) as temporary:
        torch.save({**about, "state_dict": state}, temporary)


def load_embdelta_adapter(
    path: Path | str, d_model: int | None = None, map_location: torch.device | str | None = None
) -> EmbeddingDelta:
    """An adapter from its file, ready to apply.

    Args:
        path: what `save_adapter` wrote, .safetensors or .pt.
        d_model: channels that it must have; None takes any.
        map_location: where it computes; the CPU when None.

    Raises:
        FileError: no such file, or a file of something else.
        CorruptFileError: damaged, or holding code.
        CheckpointError: an adapter of another width, or whose tensors are not those of its settings.

    Source: the Embedding Delta v2 document, "Use at inference".
    """
    stored = read_adapter(path)
    try:
        config = DeltaConfig.model_validate(stored.config)
    except ValidationError as error:
        raise CheckpointError(f"{path} has settings of no known adapter: {error.errors()[0]['loc']}") from error
    if d_model is not None and config.d_model != d_model:
        raise CheckpointError(
            f"{path} adapts embeddings of {config.d_model} channels, not {d_model}; give the adapter of this encoder"
        )
    with torch.device("meta"):
        adapter = EmbeddingDelta(config)
    expected = {name: tensor.shape for name, tensor in adapter.state_dict().items()}
    found = {name: tensor.shape if tensor.is_floating_point() else None for name, tensor in stored.tensors.items()}
    if found != expected:
        raise CheckpointError(f"{path} holds other tensors than its settings ask for; write it again")
    adapter.load_state_dict(stored.tensors, assign=True)
    return adapter.to(map_location or "cpu").float().eval().requires_grad_(False)


def read_adapter(path: Path | str) -> StoredModule:
    """The tensors, settings and training record of an adapter's file.

    Raises:
        FileError: no such file, or a file of something else.
        CorruptFileError: damaged, or holding code.
    """
    stored = read_module(path) if _suffix(path) == ".safetensors" else _read_pt(path)
    if stored.kind != _KIND:
        raise FileError(f"{path} holds {stored.kind}; give an adapter that `latentloom delta train` wrote")
    return stored


def _read_pt(path: Path | str) -> StoredModule:
    loaded = read_pt(path, mmap=False)
    refusal = FileError(f"{path} is no Embedding Delta adapter; give one that `latentloom delta train` wrote")
    if not isinstance(loaded, dict) or loaded.keys() != {"class", "config", "record", "state_dict"}:
        raise refusal
    tensors = loaded["state_dict"]
    try:
        config, record = json.loads(loaded["config"]), json.loads(loaded["record"])
    except (TypeError, ValueError) as error:
        raise refusal from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise refusal
    if not isinstance(config, dict) or not isinstance(record, dict | None):
        raise refusal
    return StoredModule(tensors, str(loaded["class"]), config, record)


def _suffix(path: Path | str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".safetensors", ".pt"):
        raise FileError(f"{path} is no name of an adapter; end it in .safetensors or .pt")
    return suffix
