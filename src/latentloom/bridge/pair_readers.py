"""Files of texts and vectors, row by row: JSON lists, JSONL, safetensors shards and webdataset tars."""

import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import braceexpand
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from latentloom.bridge.pair_rows import BadRowError, PairRow
from latentloom.errors import CorruptFileError, FileError
from latentloom.storage.foreign import read_npy_bytes, read_pt_bytes
from latentloom.storage.header import read_header

VECTORS = "vectors"
FLOATS = ("F16", "BF16", "F32", "F64")
TEXT, NPY, PT = "txt", "npy", "latent.pt"
MAX_MEMBER_BYTES = 2**26
ROWS_AT_ONCE = 4096
REST_AT_ONCE = 2**20
_KINDS = "give a .json, .jsonl, .safetensors or .tar file, shards as in x-{00000..00007}.tar, or a folder of them"


class PairFile(ABC):
    """One file of pairs.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def files(self) -> Iterator[Path]:
        """All files whose change changes the pairs; some of them may be missing."""

    @abstractmethod
    def rows(self) -> Iterator[PairRow]:
        """The rows in their order.

        Raises:
            FileError: the file as a whole cannot be read.
        """


def find_pair_files(source: str, root: Path) -> list[PairFile]:
    """The files that a name stands for, in their order.

    Args:
        source: a file, shards with braces, or a folder; a folder's pairs.json or pairs.jsonl is taken, otherwise its
            shards.
        root: what the name is relative to.

    Raises:
        FileError: there is none, or one of another kind.
    """
    try:
        paths = [root / name for name in braceexpand(source)]
    except ValueError as error:
        raise FileError(f"{source!r} has a brace that is not closed; {_KINDS}") from error
    if len(paths) == 1 and paths[0].is_dir():
        paths = _in_folder(paths[0])
    for path in paths:
        if path.suffix not in _READERS:
            raise FileError(f"{path} is of no kind that holds pairs; {_KINDS}")
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise FileError(f"{path} {what}; {_KINDS}")
    if len({path.suffix for path in paths}) != 1:
        raise FileError(f"{source!r} names files of several kinds; give one kind")
    return [_READERS[path.suffix](path) for path in paths]


class JsonList(PairFile):
    """The document's format: a list of `{"text": ..., "latent_path": ...}`, paths relative to the file.

    Args:
        path: of the file, which is read as a whole.
    """

    def files(self) -> Iterator[Path]:
        yield self.path
        yield from (self.path.parent / name for name in map(_latent_path, self._entries) if name is not None)

    def rows(self) -> Iterator[PairRow]:
        for number, entry in enumerate(self._entries, start=1):
            yield PairRow(f"{self.path} row {number}", lambda entry=entry: _read_entry(entry, self.path.parent))

    @cached_property
    def _entries(self) -> list[Any]:
        try:
            found = json.loads(self.path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise CorruptFileError(f"{self.path} is not JSON in UTF-8 ({error}); write it again") from error
        if not isinstance(found, list):
            kind = "an object" if isinstance(found, dict) else f"a {type(found).__name__}"
            raise FileError(f'{self.path} holds {kind}; give a list of {{"text": ..., "latent_path": ...}}')
        return found


class JsonLines(PairFile):
    """The same rows one a line, each with a `latent_path` or with the vector itself as a list under `vector`.

    Args:
        path: of the file, which is read line by line.
    """

    def files(self) -> Iterator[Path]:
        yield self.path
        for _, line in _lines(self.path):
            if b"latent_path" in line:  # rows that hold their vectors are long, and need not be parsed for this
                name = _latent_path(_parsed(line))
                if name is not None:
                    yield self.path.parent / name

    def rows(self) -> Iterator[PairRow]:
        for number, line in _lines(self.path):
            yield PairRow(f"{self.path} line {number}", lambda line=line: _read_line(line, self.path.parent))


class TensorShard(PairFile):
    """A safetensors file with a tensor `vectors` [N, D], its N texts in a JSONL file of the same name beside it.

    Args:
        path: of the safetensors file; only the rows at hand are in memory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.texts = path.with_suffix(".jsonl")

    def files(self) -> Iterator[Path]:
        yield from (self.path, self.texts)

    def rows(self) -> Iterator[PairRow]:
        entry = read_header(self.path).get(VECTORS)
        if entry is None or entry["dtype"] not in FLOATS or len(entry["shape"]) != 2:
            raise FileError(f"{self.path} holds no tensor {VECTORS!r} [N, D] of a floating type; give a file that does")
        num_rows = entry["shape"][0]
        if not self.texts.is_file():
            raise FileError(f'{self.path} lacks its texts, {self.texts}, one {{"text": ...}} a line; put them there')
        lines = [line for _, line in _lines(self.texts)]
        if len(lines) != num_rows:
            raise FileError(f"{self.path} has {num_rows} vectors and {self.texts} {len(lines)} texts; make them alike")
        with safe_open(self.path, "pt") as stored:
            vectors = stored.get_slice(VECTORS)
            for start in range(0, num_rows, ROWS_AT_ONCE):
                some: Tensor = vectors[start : start + ROWS_AT_ONCE]
                for offset, vector in enumerate(some.float().numpy(), start=start):
                    name = f"{self.path} row {offset + 1}"
                    yield PairRow(name, lambda line=lines[offset], vector=vector: (_text_of(line), vector))


class TarShard(PairFile):
    """A webdataset tar with `{key}.txt` and `{key}.npy` or `{key}.latent.pt`; other members are passed over.

    Args:
        path: of the tar, read in one go with one pair in memory.
    """

    def files(self) -> Iterator[Path]:
        yield self.path

    def rows(self) -> Iterator[PairRow]:
        for key, group in groupby(self._members(), key=lambda member: member[0]):
            found = [(kind, data) for _, kind, data in group]
            yield PairRow(f"{self.path} {key}", lambda key=key, found=found: _read_members(key, found))

    def _members(self) -> Iterator[tuple[str, str, bytes | None]]:
        """Key, kind and content of the members of pairs; no content where it is too large."""
        try:
            with self.path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                end = 0
                for member in tar:
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    key, kind = base_plus_ext(member.name)
                    if key is not None and member.isreg() and kind in (TEXT, NPY, PT):
                        content = tar.extractfile(member) if member.size <= MAX_MEMBER_BYTES else None
                        yield key, kind, None if content is None else content.read()
                # a damaged header ends the reading without a word, as does the end of a file that is cut
                file.seek(end)
                rest = file.read(REST_AT_ONCE)
                is_whole = bool(rest)
                while rest:
                    is_whole = is_whole and not any(rest)
                    rest = file.read(REST_AT_ONCE)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise CorruptFileError(f"{self.path} is no tar, or is damaged ({error}); make or copy it again") from error
        if not is_whole:
            raise CorruptFileError(f"{self.path} is cut short or damaged after byte {end}; make or copy it again")


_READERS = {".json": JsonList, ".jsonl": JsonLines, ".safetensors": TensorShard, ".tar": TarShard}


def _in_folder(folder: Path) -> list[Path]:
    for name in ("pairs.json", "pairs.jsonl"):
        if (folder / name).is_file():
            return [folder / name]
    shards = [sorted(folder.glob(f"*{suffix}")) for suffix in (".safetensors", ".tar")]
    if all(shards) or not any(shards):
        what = "shards of two kinds" if all(shards) else "neither pairs.json, pairs.jsonl nor shards"
        raise FileError(f"{folder} holds {what}; {_KINDS}")
    return shards[0] or shards[1]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


def _parsed(line: bytes) -> Any:
    """The JSON value of a line; None, which is no row, where it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _latent_path(entry: Any) -> str | None:
    name = entry.get("latent_path") if isinstance(entry, dict) else None
    return name if isinstance(name, str) and "\0" not in name else None


def _read_line(line: bytes, folder: Path) -> tuple[object, np.ndarray]:
    return _read_entry(_parsed(line), folder)


def _text_of(line: bytes) -> object:
    entry = _parsed(line)
    return entry.get("text") if isinstance(entry, dict) else None


def _read_entry(entry: Any, folder: Path) -> tuple[object, np.ndarray]:
    if not isinstance(entry, dict):
        raise BadRowError("no pair", 'it is no object with "text" and "latent_path"')
    name = _latent_path(entry)
    if "vector" in entry:
        return entry.get("text"), _array(entry["vector"])
    if name is None:
        raise BadRowError("no vector", "it has no latent_path")
    return entry.get("text"), _read_file(folder / name)


def _read_file(path: Path) -> Shaped[np.ndarray, "..."]:
    try:
        if path.stat().st_size > MAX_MEMBER_BYTES:
            raise BadRowError("too large", f"{path} is larger than {MAX_MEMBER_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        reason = "missing file" if isinstance(error, FileNotFoundError) else "unreadable file"
        raise BadRowError(reason, f"{path}: {error.strerror}") from error
    return _decoded(NPY, data, str(path))


def _array(values: Any) -> Shaped[np.ndarray, "..."]:
    """A list out of JSON, where whole numbers stand without a point."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise BadRowError("wrong shape", "its vector is no list of numbers of one length") from error
    return array.astype(np.float64) if array.dtype.kind in "iu" and array.ndim else array


def _read_members(key: str, found: list[tuple[str, bytes | None]]) -> tuple[object, np.ndarray]:
    members = dict(found)
    if len(members) != len(found):
        raise BadRowError("member twice", "a member of it is there twice")
    kind = NPY if NPY in members else PT
    if TEXT not in members or kind not in members:
        missing = "text" if TEXT not in members else "vector"
        raise BadRowError(f"no {missing}", f"it has no {TEXT if missing == 'text' else f'{NPY} and no {PT}'}")
    text, vector = members[TEXT], members[kind]
    if text is None or vector is None:
        raise BadRowError("too large", f"a member is larger than {MAX_MEMBER_BYTES} bytes")
    try:
        return text.decode("utf-8"), _decoded(kind, vector, f"{key}.{kind}")
    except UnicodeDecodeError as error:
        raise BadRowError("not Unicode", f"its text is not UTF-8 (byte {error.start})") from error


def _decoded(kind: str, data: bytes, name: str) -> Shaped[np.ndarray, "..."]:
    try:
        if kind == NPY:
            return read_npy_bytes(data, name)
        found = read_pt_bytes(data, name, MAX_MEMBER_BYTES)
    except CorruptFileError as error:
        raise BadRowError("unreadable file", str(error)) from error
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise BadRowError("wrong dtype", f"{name} holds no tensor of a floating type")
    return found.detach().float().numpy()
