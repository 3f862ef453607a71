"""Weight files written tensor by tensor: values go from file to file without a model in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentloom.storage import write_json
from latentloom.wan.shards import DTYPES, Shards, StoredTensor

# Below the size at which hosting sites ask for shards; the official 5B comes in parts of this size.
SHARD_BYTES = 10 * 10**9

OnBytes = Callable[[int], None]


@dataclass(frozen=True)
class Renaming:
    """Tensors to copy: stored key -> key to write; and tensors that are small and made on the spot."""

    shards: Shards
    keys: Mapping[str, str]
    made: Mapping[str, Tensor]

    def stored(self) -> dict[str, StoredTensor]:
        """What each stored key refers to: in the order of reading, and the widest types first for alignment."""
        tensors = {key: tensor for key, tensor in self.shards.tensors.items() if key in self.keys}
        return dict(sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize))


def write_shards(folder: Path, stem: str, source: Renaming, on_bytes: OnBytes) -> list[Path]:
    """One safetensors file, or numbered ones of at most SHARD_BYTES with the index that loaders look for."""
    groups: list[list[str]] = [[]]
    filled = total = 0
    for key, tensor in source.stored().items():
        if groups[-1] and filled + tensor.num_bytes > SHARD_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(key)
        filled += tensor.num_bytes
        total += tensor.num_bytes
    if len(groups) == 1:
        files = [folder / f"{stem}.safetensors"]
    else:
        files = [
            folder / f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)
        ]
        places = {source.keys[key]: file.name for group, file in zip(groups, files, strict=True) for key in group}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    for group, file in zip(groups, files, strict=True):
        write_safetensors(file, Renaming(source.shards, {key: source.keys[key] for key in group}, {}), on_bytes)
    return files


def write_safetensors(file: Path, source: Renaming, on_bytes: OnBytes) -> None:
    """One safetensors file; at no time is more than one tensor in memory."""
    stored = source.stored()
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for key, tensor in stored.items():
        header[source.keys[key]] = _entry(tensor.dtype, tensor.shape, end, end + tensor.num_bytes)
        end += tensor.num_bytes
    for key, tensor in source.made.items():
        header[key] = _entry("U8", tensor.shape, end, end + tensor.nbytes)
        end += tensor.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        for keys in _runs_of_one_width(stored):
            for _, tensor in source.shards.read(keys):
                stream.write(as_bytes(tensor))
                on_bytes(tensor.nbytes)
        for tensor in source.made.values():
            stream.write(as_bytes(tensor))


def write_pickle(file: Path, source: Renaming, on_bytes: OnBytes) -> None:
    """The official `.pth`: a plain dictionary of tensors; they stay mapped to their files until each is written."""
    torch.save({source.keys[key]: tensor for key, tensor in source.shards.read(list(source.keys))}, file)
    on_bytes(sum(tensor.num_bytes for tensor in source.stored().values()))


def as_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values as they lie in memory, row by row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _runs_of_one_width(stored: Mapping[str, StoredTensor]) -> list[list[str]]:
    """Keys grouped by the width of their type: within a group, tensors are written in the order they are read in."""
    widths: dict[int, list[str]] = {}
    for key, tensor in stored.items():
        widths.setdefault(DTYPES[tensor.dtype].itemsize, []).append(key)
    return list(widths.values())


def _entry(dtype: str, shape: Sequence[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
