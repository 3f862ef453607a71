"""Tensors by key in Arrow files of bounded size, written one after the other and read through memory mapping."""

import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any

import pyarrow as pa
import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import atomic_write

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SHARD_BYTES = 2**26
SHARD_SECONDS = 60.0
"""A shard ends at 64 MiB or after a minute, whichever comes first: what an interruption costs at most."""

MAX_OPEN = 64
TENSORS = Features(
    {
        "key": Value("string"),
        "dtype": Value("string"),
        "shape": List(Value("int32")),
        "checksum": Value("int64"),
        "values": Value("binary"),
    }
)
_BROKEN = (OSError, ValueError, KeyError, pa.ArrowException)

Places = Mapping[str, tuple[str, int]]
"""Name of the shard and row in it, by key."""


class ShardWriter:
    """Appends tensors to new shards of a folder; leaving the context closes the last, after an error as well.

    Args:
        folder: where the shards go; made if missing.
        rank: of this process; part of the names.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.folder = folder
        self.places: dict[str, tuple[str, int]] = {}
        self._rank = rank
        self._shard: _OpenShard | None = None

    def add(self, key: str, tensor: Float[Tensor, "..."]) -> None:
        """Store a tensor on any device, in float32 or bfloat16.

        Raises:
            FileError: the folder cannot be written to, or the disk is full; finished shards stay.
        """
        values = _as_bytes(tensor)
        dtype, shape = str(tensor.dtype).removeprefix("torch."), list(tensor.shape)
        with self._told():
            if self._shard is None:
                self._shard = _OpenShard(self.folder / f"shard-{self._rank:03d}-{token_hex(6)}.arrow", TENSORS)
            row = {"key": key, "dtype": dtype, "shape": shape, "values": values}
            self._shard.write(row | {"checksum": _checksum(key, dtype, shape, values)})
            if self._shard.num_bytes >= SHARD_BYTES or time.monotonic() - self._shard.started >= SHARD_SECONDS:
                self._close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._told():
            self._close()

    def _close(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.finish()
            self.places |= {key: (shard.path.name, row) for row, key in enumerate(shard.keys)}

    @contextmanager
    def _told(self) -> Iterator[None]:
        """An error of the disk as one line; the shard that it cut short is given up."""
        try:
            yield
        except OSError as error:
            if self._shard is not None:
                shard, self._shard = self._shard, None
                shard.abandon()
            raise _cannot_write(self.folder, error) from error
        except FileError as error:  # from the writer of whole files, which knows nothing of the other shards
            raise FileError(f"{error}: what was finished is kept") from error


class ShardReader:
    """Tensors of a folder's shards by key; a shard is mapped when it is first needed, and only some stay open.

    Args:
        folder: where the shards are.
        places: where each tensor is.
    """

    def __init__(self, folder: Path, places: Places) -> None:
        self.folder = folder
        self.places = places
        self._open: OrderedDict[str, Dataset] = OrderedDict()

    def read(self, key: str) -> Float[Tensor, "..."]:
        """The tensor as it was stored, on the CPU.

        Raises:
            CorruptFileError: the shard is damaged or gone.
        """
        shard, row = self.places[key]
        path = self.folder / shard
        try:
            if shard not in self._open:
                self._open[shard] = _map(path)
            self._open.move_to_end(shard)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
            stored = self._open[shard][row]
            if stored["key"] == key and _is_sound(stored):
                return _from_bytes(stored)
        except (*_BROKEN, IndexError) as error:
            raise _damaged(path) from error
        raise _damaged(path)


def find_places(paths: Iterable[Path]) -> tuple[dict[str, tuple[str, int]], list[Path]]:
    """Where each tensor of these shards is, every byte of them checked, and the shards that are damaged."""
    places: dict[str, tuple[str, int]] = {}
    damaged = []
    for path in paths:
        try:
            rows = {}
            for number, stored in enumerate(_rows(_map(path))):
                if not _is_sound(stored):
                    raise ValueError(f"row {number} has another checksum")
                rows[stored["key"]] = (path.name, number)
        except _BROKEN as error:
            logger.warning("%s is damaged (%s); what it held is computed again", path, str(error).splitlines()[0][:80])
            damaged.append(path)
        else:
            places |= rows
    return places, damaged


def write_table(path: Path, features: Features, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as one Arrow file, whole or not at all.

    Raises:
        FileError: it cannot be written.
    """
    try:
        shard = _OpenShard(path, features, batch_size=1000)
        try:
            for row in rows:
                shard.write(row)
        except OSError:
            shard.abandon()
            raise
        shard.finish()
    except OSError as error:
        raise _cannot_write(path, error) from error


def read_table(path: Path, features: Features) -> list[dict[str, Any]] | None:
    """The rows of `write_table`; None, with a warning, where the file is damaged or of another version."""
    try:
        table = _map(path)
        if table.features == features:
            return list(_rows(table))
        reason = "of another version"
    except _BROKEN as error:
        reason = f"damaged ({str(error).splitlines()[0][:80]})"
    logger.warning("%s is %s; it is made again", path, reason)
    return None


class _GivenUpError(Exception):
    """Ends the writing of a shard as a failure that is told elsewhere."""


class _OpenShard:
    """An Arrow file that is being written under a temporary name."""

    def __init__(self, path: Path, features: Features, batch_size: int = 1) -> None:
        self.path = path
        self.started = time.monotonic()
        self.num_bytes = 0
        self.keys: list[str] = []
        self._features = features
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_write(path))
        stream = self._stack.enter_context(pa.OSFile(str(temporary), "wb"))
        self._writer = ArrowWriter(stream=stream, features=features, writer_batch_size=batch_size)

    def write(self, row: Mapping[str, Any]) -> None:
        self._writer.write(dict(row))
        self.keys.append(row.get("key", ""))
        self.num_bytes += len(row.get("values", b""))

    def finish(self) -> None:
        try:
            self._writer.finalize(close_stream=False)
        except OSError:
            self.abandon()
            raise
        self._stack.close()

    def abandon(self) -> None:
        """Remove the temporary file; what went wrong is for the caller to say."""
        self._stack.__exit__(_GivenUpError, _GivenUpError(), None)


def _map(path: Path) -> Dataset:
    table = Dataset.from_file(str(path))
    table.data.table.validate(full=True)  # offsets that point nowhere would be followed
    return table


def _rows(table: Dataset) -> Iterator[dict[str, Any]]:
    for row in table:
        yield dict(row)


def _as_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def _from_bytes(stored: Mapping[str, Any]) -> Tensor:
    dtype = DTYPES[stored["dtype"]]
    if not stored["values"]:
        return torch.empty(stored["shape"], dtype=dtype)
    return torch.frombuffer(bytearray(stored["values"]), dtype=dtype).view(stored["shape"])


def _is_sound(stored: Mapping[str, Any]) -> bool:
    return stored["checksum"] == _checksum(stored["key"], stored["dtype"], stored["shape"], stored["values"])


def _checksum(key: str, dtype: str, shape: Sequence[int], values: bytes) -> int:
    return zlib.crc32(values, zlib.crc32(f"{key} {dtype} {list(shape)}".encode()))


def _damaged(path: Path) -> CorruptFileError:
    return CorruptFileError(f"{path} is damaged or gone; start again without --trust_cache, and it is computed again")


def _cannot_write(place: Path, error: OSError) -> FileError:
    reason = error.strerror or str(error).splitlines()[0]
    return FileError(f"cannot write {place}: {reason}; make room there and start again: what was finished is kept")
