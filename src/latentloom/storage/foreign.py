"""Arrays and tensors that other programs wrote, read without trusting them."""

import io
import math
import pickletools
import zipfile
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from latentloom.errors import CorruptFileError, LatentLoomError
from latentloom.storage.header import existing_file

SMALL_BYTES = 64 * 2**20  # a file may always unpack to this much
MAX_RATIO = 100  # and beyond it, to this many times its own size
PART_BYTES = 2**20  # an array is read in parts of this size
SMALL_PICKLE = 4096
MAX_PT_BYTES = 64 * 2**30  # the largest official file, a 14B expert in float32, is 57 GB

SAFE_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
}


def read_npz(path: Path | str) -> dict[str, np.ndarray]:
    """Array name -> array; pickled objects are refused.

    Raises:
        FileError: no such file.
        CorruptFileError: not an npz file, damaged, holding pickled objects, or unpacking to far more than its size.
    """
    path = existing_file(path)
    with _reading(str(path), "an npz file"), zipfile.ZipFile(path) as archive:
        _refuse_bomb(str(path), path.stat().st_size, archive, {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
        return {member.filename.removesuffix(".npy"): _read_member(archive, member) for member in archive.infolist()}


def read_npy_bytes(data: bytes, name: str) -> np.ndarray:
    """The array in the bytes of an npy file, or of a part of a tar; pickled objects are refused.

    Args:
        data: the whole content.
        name: what it is called in an error.

    Raises:
        CorruptFileError: not an npy file, damaged, holding pickled objects, or of another size than it claims.
    """
    with _reading(name, "an npy file"):
        return _read_npy(io.BytesIO(data), len(data), "it")


def read_pt(path: Path | str, max_bytes: int = MAX_PT_BYTES, map_location: str = "cpu", mmap: bool = True) -> Any:
    """What torch.save wrote (a state dict, as a rule); code is refused, tensors stay in the file until touched.

    Args:
        path: a .pt, .pth or .bin file in torch's zip format (since torch 1.6).
        max_bytes: the most its tensors may take together.
        map_location: device of the tensors.
        mmap: map the tensors from the file instead of reading them now.

    Raises:
        FileError: no such file.
        CorruptFileError: another format, damaged, holding code, or claiming far more than its size.
    """
    path = existing_file(path)
    return _load_pt(path, str(path), path.stat().st_size, max_bytes, map_location, mmap)


def read_pt_bytes(data: bytes, name: str, max_bytes: int = MAX_PT_BYTES) -> Any:
    """What torch.save wrote into these bytes, such as a part of a tar; checked as `read_pt` checks a file.

    Args:
        data: the whole content, in torch's zip format.
        name: what it is called in an error.
        max_bytes: the most its tensors may take together.

    Raises:
        CorruptFileError: another format, damaged, holding code, or claiming far more than its size.
    """
    return _load_pt(io.BytesIO(data), name, len(data), max_bytes, "cpu", mmap=False)


def _load_pt(
    source: Path | io.BytesIO, name: str, num_bytes: int, max_bytes: int, map_location: str, mmap: bool
) -> Any:
    with _reading(name, "a torch file in the zip format of torch.save"):
        with zipfile.ZipFile(source) as archive:
            # torch never compresses: a compressed member is a bomb or not torch's
            _refuse_bomb(name, num_bytes, archive, {zipfile.ZIP_STORED})
            _refuse_code(name, archive)
            sizes = Counter(member.file_size for member in archive.infolist() if "/data/" in member.filename)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        loaded = torch.load(source, map_location=map_location, mmap=mmap, weights_only=True)
        # a storage is not held against its member: a cut one would show the bytes of its neighbours
        if not _storage_sizes(loaded) <= sizes:
            raise ValueError("a tensor is longer or shorter than the part that holds it")
    limit = min(max_bytes, _most_bytes(num_bytes))
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(loaded))
    if claimed > limit:
        raise CorruptFileError(f"{name} claims {claimed} bytes of tensors; at most {limit} are read from it")
    return loaded


@contextmanager
def _reading(name: str, format_name: str) -> Iterator[None]:
    try:
        yield
    except LatentLoomError:
        raise
    # whatever a hostile or cut file makes a parser raise, to the user it is one thing: a file that cannot be read
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CorruptFileError(f"{name} is not {format_name}, or is damaged: {reason}") from error


def _most_bytes(num_bytes: int) -> int:
    return max(SMALL_BYTES, MAX_RATIO * num_bytes)


def _refuse_bomb(name: str, num_bytes: int, archive: zipfile.ZipFile, compressions: Container[int]) -> None:
    members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    limit = _most_bytes(num_bytes)
    if unpacked > limit:
        raise CorruptFileError(f"{name} would unpack to {unpacked} bytes; at most {limit} are unpacked")
    for member in members:
        stored_wrong = member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size
        if member.compress_type not in compressions or member.flag_bits & 1 or stored_wrong:
            raise CorruptFileError(f"{name}: part {member.filename[:80]!r} is packed in a way this format never uses")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        return _read_npy(file, member.file_size, f"array {member.filename[:80]!r}")


def _read_npy(file: IO[bytes] | io.BufferedIOBase, size: int, name: str) -> np.ndarray:
    """The array of an npy file that takes `size` bytes."""
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in headers:
        raise ValueError(f"{name} has the unknown format version {version}")
    shape, in_columns, dtype = headers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled Python objects")
    # numpy would allocate what the header claims; this holds the claim against the bytes that are there
    num_bytes = size - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != num_bytes:
        raise ValueError(f"{name} of shape {shape} does not take its {num_bytes} bytes")
    data = bytearray(num_bytes)
    # in parts, as a zip hands out bytes of its own: in one go the array would be held more than once
    for start in range(0, num_bytes, PART_BYTES):
        wanted = min(PART_BYTES, num_bytes - start)
        part = file.read(wanted)
        if len(part) != wanted:
            raise ValueError(f"{name} ends before its {num_bytes} bytes")
        data[start : start + wanted] = part
    return np.ndarray(shape, dtype, buffer=data, order="F" if in_columns else "C")


def _refuse_code(name: str, archive: zipfile.ZipFile) -> None:
    # weights_only stops code; this also stops the callables it lets through that allocate on request (bytearray)
    pickles = [member for member in archive.namelist() if member.endswith("data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it has no single data.pkl")
    pickled = archive.read(pickles[0])
    foreign = _foreign_name(pickled) if len(pickled) > SMALL_PICKLE else _foreign_name_of_small(pickled)
    if foreign is not None:
        raise CorruptFileError(f"{name} would run {foreign!r}; only plain tensors are read, convert it to safetensors")


def _foreign_name(pickled: bytes) -> str | None:
    """The first name in a pickle that builds no tensor."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL") and not _builds_tensors(argument):
            return str(argument)[:80]
    return None


@lru_cache(maxsize=64)  # thousands of tensors of one shape have the same pickle, and taking it apart is slow
def _foreign_name_of_small(pickled: bytes) -> str | None:
    return _foreign_name(pickled)


def _builds_tensors(name: Any) -> bool:
    if not isinstance(name, str):
        return False
    module, _, attribute = name.partition(" ")
    known = module == "torch" and attribute.isidentifier()
    is_type = known and (attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype))
    return is_type or name in SAFE_GLOBALS


def _storage_sizes(loaded: Any) -> Counter[int]:
    storages = (tensor.untyped_storage() for tensor in _tensors_in(loaded) if not tensor.is_meta)
    return Counter({storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes()}.values())


def _tensors_in(loaded: Any) -> Iterator[Tensor]:
    """Every tensor once, however often the containers share it."""
    seen: set[int] = set()
    waiting = [loaded]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list | tuple | set):
            waiting.extend(item)
