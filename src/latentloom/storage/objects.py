"""The shared tensor types as safetensors files that rebuild them."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import Tensor

from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.storage.header import read_header
from latentloom.storage.modules import read_origin, read_tensors, save_module
from latentloom.tensors import SentenceVector, TextEmbeddings, VideoLatents

StoredObject = TextEmbeddings | VideoLatents | SentenceVector
Kind = TypeVar("Kind", TextEmbeddings, VideoLatents, SentenceVector)

KINDS: dict[str, type[StoredObject]] = {kind.__name__: kind for kind in (TextEmbeddings, VideoLatents, SentenceVector)}
DIMENSIONS = {
    "TextEmbeddings": {"tokens": 2, "lengths": 1},
    "VideoLatents": {"values": 5},
    "SentenceVector": {"values": 2},
}


def save_object(path: Path | str, stored: StoredObject, record: Mapping[str, Any] | None = None) -> None:
    """Write one of the shared tensor types, exactly, in its own dtype.

    Args:
        path: the safetensors file.
        stored: what to write.
        record: how it came about, JSON values.
    """
    tensors = {field.name: getattr(stored, field.name) for field in fields(stored)}
    save_module(path, tensors, type(stored).__name__, {}, record)


@overload
def load_object(path: Path | str, kind: None = None) -> StoredObject: ...
@overload
def load_object(path: Path | str, kind: type[Kind]) -> Kind: ...
def load_object(path: Path | str, kind: type[StoredObject] | None = None) -> StoredObject:
    """What `save_object` wrote, on the CPU.

    Args:
        path: the safetensors file.
        kind: the type it must hold; None takes any.

    Raises:
        FileError: no such file, or it holds something else.
        CorruptFileError: damaged.
    """
    name = read_origin(path).kind
    if name not in KINDS or (kind is not None and KINDS[name] is not kind):
        wanted = " or ".join(KINDS) if kind is None else kind.__name__
        raise FileError(f"{path} holds {name}; give a file that holds {wanted}")
    shapes = {key: len(entry["shape"]) for key, entry in read_header(path).items() if key != "__metadata__"}
    if shapes != DIMENSIONS[name]:
        raise CorruptFileError(
            f"{path} is damaged: {name} needs tensors of {DIMENSIONS[name]} dimensions, not {shapes}"
        )
    tensors = read_tensors(path)
    problem = _dtype_problem(tensors)
    if problem:
        raise CorruptFileError(f"{path} is damaged: {problem}")
    try:
        return KINDS[name](**tensors)
    except ShapeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error


def _dtype_problem(tensors: Mapping[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() == (name == "lengths") or tensor.is_complex():
            return f"{name} is of dtype {tensor.dtype}"
    return None
