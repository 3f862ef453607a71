"""Which tensors lie in a file or folder, by block, and what they are parts of; only headers are read.

Unlike `latentloom inspect checkpoint` this works on files that are no whole model: one shard, an adapter, a tuned part,
or weights of another family, whose keys are listed all the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latentloom.errors import FileError
from latentloom.finetune.probes.key_kinds import Kind, KindOfKeys, tell_kind
from latentloom.storage import read_header
from latentloom.storage.header import BITS

_SUFFIXES = (".safetensors", ".pth", ".pt")
# Of a folder's pickles only these: optimizer states and others are none of ours to open.
_PATTERNS = ("*.safetensors", "models_t5*.pth", "*VAE*.pth")
# Longest first; a bundle's models are told apart by theirs.
_PREFIXES = (
    "text_encoders.umt5xxl.transformer.",
    "base_model.model.diffusion_model.",
    "model.diffusion_model.",
    "text_encoders.umt5xxl.",
    "base_model.model.",
    "first_stage_model.",
    "diffusion_model.",
    "transformer.",
    "module.",
    "vae.",
)
_BLOCK = re.compile(r"(?:^|\.)(?:blocks?|layers|h)\.(\d+)\.|^lora_unet_blocks_(\d+)_")
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)")


@dataclass(frozen=True)
class KeyRow:
    """One stored tensor.

    Attributes:
        key: the stored key without its prefix.
        block: the number of its block; None outside the blocks.
        shape: sizes.
        dtype: in safetensors' names, such as BF16.
    """

    file: Path
    prefix: str
    key: str
    block: int | None
    shape: tuple[int, ...]
    dtype: str
    num_elements: int


@dataclass(frozen=True)
class KeyGroup:
    """Tensors that belong together: the shards of one model, an adapter, or one model of a bundle.

    Attributes:
        name: the file's path below what was scanned, without the shard's number.
        files: the shards that are there.
        num_shards: how many there should be.
        prefix: what stood before its keys, most often nothing.
    """

    name: str
    files: tuple[Path, ...]
    num_shards: int
    prefix: str
    rows: tuple[KeyRow, ...]

    @cached_property
    def kind(self) -> KindOfKeys:
        """What the tensors are, in words too."""
        shapes = {row.key: row.shape for row in self.rows}
        return tell_kind(shapes, self.name, len(self.files) == self.num_shards)

    @property
    def num_parameters(self) -> int:
        return sum(row.num_elements for row in self.rows)

    @property
    def blocks(self) -> list[int]:
        """Numbers of the blocks that have tensors here."""
        return sorted({row.block for row in self.rows if row.block is not None})

    @property
    def dtypes(self) -> dict[str, int]:
        """Number of values by stored type."""
        counts: dict[str, int] = {}
        for row in self.rows:
            counts[row.dtype] = counts.get(row.dtype, 0) + row.num_elements
        return counts

    def odd_blocks(self) -> list[int]:
        """Blocks whose keys, shapes or types are not those of the first block here."""
        by_block: dict[int, set[tuple[str, tuple[int, ...], str]]] = {}
        for row in self.rows:
            if row.block is not None:
                inner = _BLOCK.sub(".", row.key)
                by_block.setdefault(row.block, set()).add((inner, row.shape, row.dtype))
        first = by_block[min(by_block)] if by_block else set()
        return [block for block, held in sorted(by_block.items()) if held != first]


def scan_keys(path: Path) -> list[KeyGroup]:
    """Every tensor in a weight file, or in all weight files at or below a folder, by what belongs together.

    Args:
        path: a .safetensors, .pth or .pt file, or a folder.

    Raises:
        FileError: nothing is there, or no weight file.
        CorruptFileError: a file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"{path} does not exist; give a weight file, or a folder that holds some")
    files = _files_below(path) if path.is_dir() else [path]
    base = path if path.is_dir() else path.parent
    gathered: dict[str, list[Path]] = {}
    for file in files:
        numbered = _SHARD.fullmatch(file.stem)
        stem = file.with_name(numbered["stem"]) if numbered else file.with_suffix("")
        gathered.setdefault(str(stem.relative_to(base)), []).append(file)
    return [group for name, shards in gathered.items() for group in _groups_in(name, shards)]


def natural(row: KeyRow) -> tuple[int, list[tuple[int, str]]]:
    """Sorts rows by block and then by key, with 10 after 9; what is in no block comes first."""
    parts = re.split(r"(\d+)", row.key)
    return -1 if row.block is None else row.block, [
        (int(part), "") if part.isdecimal() else (-1, part) for part in parts
    ]


def _files_below(folder: Path) -> list[Path]:
    found = {
        file
        for pattern in _PATTERNS
        for file in folder.rglob(pattern)
        # hidden folders are caches and hidden files are half-written ones
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    }
    if not found:
        raise FileError(f"{folder} holds no weight file; give one that ends in {', '.join(_SUFFIXES)}, or its folder")
    return sorted(found)


def _groups_in(name: str, files: Sequence[Path]) -> list[KeyGroup]:
    """One group, or one for each model of a bundle."""
    numbered = [match for file in files if (match := _SHARD.fullmatch(file.stem))]
    num_shards = int(numbered[0]["count"]) if numbered else len(files)
    by_prefix: dict[str, list[KeyRow]] = {}
    for file in files:
        for row in _rows_of(file):
            by_prefix.setdefault(row.prefix, []).append(row)
    return [
        KeyGroup(name, tuple(files), num_shards, prefix, tuple(sorted(rows, key=natural)))
        for prefix, rows in by_prefix.items()
    ]


def _rows_of(file: Path) -> list[KeyRow]:
    if file.suffix not in _SUFFIXES:
        raise FileError(f"{file} is no weight file; give one that ends in {', '.join(_SUFFIXES)}, or its folder")
    if file.suffix == ".safetensors":
        header = {key: entry for key, entry in read_header(file).items() if key != "__metadata__"}
        return [_row(file, key, tuple(entry["shape"]), entry["dtype"], _count(entry)) for key, entry in header.items()]
    from latentloom.wan.shards import Shards  # torch, which headers do without

    stored = Shards([file]).tensors
    return [_row(file, key, tensor.shape, tensor.dtype, tensor.num_elements) for key, tensor in stored.items()]


def _row(file: Path, stored_key: str, shape: tuple[int, ...], dtype: str, num_elements: int) -> KeyRow:
    prefix = next((prefix for prefix in _PREFIXES if stored_key.startswith(prefix)), "")
    key = stored_key.removeprefix(prefix)
    numbered = _BLOCK.search(key)
    block = int(numbered[1] or numbered[2]) if numbered else None
    return KeyRow(file, prefix, key, block, shape, dtype, num_elements)


def _count(entry: dict) -> int:
    begin, end = entry["data_offsets"]
    return (end - begin) * 8 // BITS[entry["dtype"]]


__all__ = ["KeyGroup", "KeyRow", "Kind", "scan_keys"]
