"""The tensors of one model, wherever they lie: one file or many, safetensors or the official pickles."""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentloom.errors import CheckpointError, CorruptFileError, FileError
from latentloom.storage import read_header, read_pt

# safetensors' names for the types that Wan checkpoints come in.
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# The umt5-xxl encoder is 11.4 GB in bfloat16 and 22.7 GB in float32.
LARGEST_PICKLE = 64 * 2**30


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies and what it is, without its values; offset counts bytes from the file's start."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return self.num_bytes // DTYPES[self.dtype].itemsize


class Shards:
    """Tensors by their stored key over one or more files; values are read only when asked for.

    Args:
        files: `.safetensors` or `.pth` / `.pt` files that share no key.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every tensor in file order.

        Raises:
            CorruptFileError: a file is damaged.
            CheckpointError: a file holds something that is not a tensor, or two files hold the same key.
        """
        found: dict[str, StoredTensor] = {}
        for file in self.files:
            for key, tensor in _list_tensors(file):
                if key in found:
                    raise CheckpointError(f"{file} repeats the tensor {key!r} of {found[key].file}")
                found[key] = tensor
        return found

    def read(self, keys: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """The named tensors, one at a time, in file order.

        A tensor is a private view of its file: nothing is copied until it is used, and writing to it leaves the
        file alone. Clone what outlives the iteration.
        """
        wanted = set(keys)
        for file in self.files:
            chosen = {key: tensor for key, tensor in self.tensors.items() if tensor.file == file and key in wanted}
            if file.suffix == ".safetensors":
                yield from _map_tensors(file, chosen)
            elif chosen:
                loaded = read_state(file)
                for key in chosen:
                    yield key, loaded.pop(key)


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of an official `.pth`, mapped into memory, not read.

    Raises:
        CorruptFileError: the file is damaged, or runs code when unpickled.
        CheckpointError: it holds something else than a plain dictionary of tensors.
    """
    state: Any = read_pt(file, max_bytes=LARGEST_PICKLE)
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{file} holds {type(state).__name__}; a dictionary of tensors is expected")
    strange = [str(key) for key, value in state.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strange:
        raise CheckpointError(f"{file} holds {strange[0]!r}, which is not a tensor; only plain weights can be read")
    return state


def find_weights(folder: Path, stem: str = "*") -> list[Path]:
    """The weight files of one model in a folder: what its index names, else every safetensors file of that stem.

    Raises:
        CheckpointError: a shard that the index or a file's own name promises is missing.
    """
    for index in sorted(folder.glob(f"{stem}.safetensors.index.json")):
        names = sorted(set(_weight_map(index).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {len(missing)} of {len(names)} shards, first {missing[0]}")
        return [folder / name for name in names]
    files = sorted(folder.glob(f"{stem}.safetensors"))
    for file in files:
        if numbered := re.search(r"-(\d+)-of-(\d+)$", file.stem):
            present = [other for other in files if other.stem.endswith(f"-of-{numbered[2]}")]
            if len(present) < int(numbered[2]):
                raise CheckpointError(f"{folder} holds {len(present)} of {int(numbered[2])} shards; fetch the others")
            return present
    return files


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise CorruptFileError(f"{index} is not an index of shards: its weight_map must name files beside it")
    return weight_map


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CorruptFileError: it is not JSON, or not an object.
        FileError: it cannot be read.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as cause:
        raise CorruptFileError(f"{file} is not valid JSON: {cause}; download or write it again") from cause
    except OSError as cause:
        raise FileError(f"cannot read {file}: {cause.strerror}; give a checkpoint that can be read") from cause
    if not isinstance(content, dict):
        raise CorruptFileError(f"{file} holds {type(content).__name__}; a JSON object is expected")
    return content


def _list_tensors(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    if file.suffix != ".safetensors":
        for key, tensor in read_state(file).items():
            if tensor.dtype not in DTYPE_NAMES:
                raise CheckpointError(f"{file}: {key!r} is stored as {tensor.dtype}, which no Wan layout uses")
            yield key, StoredTensor(file, tuple(tensor.shape), DTYPE_NAMES[tensor.dtype], -1, tensor.nbytes)
        return
    for key, entry in read_header(file).items():
        if key == "__metadata__":
            continue
        if entry["dtype"] not in DTYPES:
            raise CheckpointError(f"{file}: {key!r} is stored as {entry['dtype']}, which no Wan layout uses")
        begin, end = entry["data_offsets"]
        yield key, StoredTensor(file, tuple(entry["shape"]), entry["dtype"], data_start(file) + begin, end - begin)


def data_start(file: Path) -> int:
    """The byte where a safetensors file's tensors begin, after the header and its eight-byte length."""
    with file.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _map_tensors(file: Path, tensors: dict[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in a mapping of its own, so that its pages go when it goes.

    One mapping of a whole file would be refused where the file is larger than the machine's memory.
    """
    with file.open("rb") as stream:
        for key, stored in tensors.items():
            dtype = DTYPES[stored.dtype]
            if stored.num_bytes == 0:
                yield key, torch.empty(stored.shape, dtype=dtype)
                continue
            begin = stored.offset - stored.offset % mmap.ALLOCATIONGRANULARITY
            skipped = stored.offset - begin
            mapping = mmap.mmap(stream.fileno(), skipped + stored.num_bytes, access=mmap.ACCESS_COPY, offset=begin)
            flat = torch.frombuffer(mapping, dtype=dtype, count=stored.num_elements, offset=skipped)
            yield key, flat.view(stored.shape)
