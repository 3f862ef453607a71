"""What a safetensors file says it holds, checked against what it can hold."""

import json
import math
from pathlib import Path
from typing import Any

from latentloom.errors import CorruptFileError, FileError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_DIMENSIONS = 64  # torch's own limit
BITS = {
    **dict.fromkeys(["F4"], 4),
    **dict.fromkeys(["F6_E2M3", "F6_E3M2"], 6),
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **dict.fromkeys(["I16", "U16", "F16", "BF16"], 16),
    **dict.fromkeys(["I32", "U32", "F32"], 32),
    **dict.fromkeys(["I64", "U64", "F64", "C64"], 64),
}


def read_header(path: Path | str) -> dict[str, Any]:
    """Tensor name -> {dtype, shape, data_offsets}, and "__metadata__" -> {str: str} where the file has it.

    Reads only the header. Every claim is checked against the file's true size before anything is allocated.

    Raises:
        FileError: no such file.
        CorruptFileError: truncated, not safetensors, or a header that contradicts itself.
    """
    path = existing_file(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise CorruptFileError(
                f"{path} ({size} bytes) is cut short or no safetensors file; download or write it again"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is no safetensors file: its header is not JSON; give another file") from error
    problem = _problem(header, size - 8 - length)
    if problem:
        raise CorruptFileError(f"{path} is damaged: {problem}; download or write it again")
    return header


def existing_file(path: Path | str) -> Path:
    """`path`, if it is a file.

    Raises:
        FileError: it is missing or a folder.
    """
    path = Path(path)
    if path.is_file():
        return path
    what = "is a folder" if path.is_dir() else "does not exist"
    raise FileError(f"{path} {what}; give the path of a file")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise ValueError("a name appears twice")
    return names


def _problem(header: Any, data_size: int) -> str | None:
    """The first thing wrong with a header, in words; None when it describes data_size bytes exactly."""
    if not isinstance(header, dict):
        return "its header is not a table of tensors"
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        return "its metadata are not strings"
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    for name, entry in tensors.items():
        problem = _entry_problem(entry)
        if problem:
            return f"tensor {name[:80]!r} {problem}"
    end = 0
    for begin, next_end in sorted(entry["data_offsets"] for entry in tensors.values()):
        if begin != end:
            return f"its tensors overlap or leave a gap at byte {min(begin, end)}"
        end = next_end
    if end != data_size:
        return f"its tensors take {end} bytes but {data_size} are there"
    return None


def _entry_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "has no dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"has the unknown dtype {str(dtype)[:20]!r}"
    if not _are_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        return "has a shape that is not a list of sizes"
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return "has offsets that are not a begin and an end"
    if math.prod(shape) * BITS[dtype] != (offsets[1] - offsets[0]) * 8:
        return f"of shape {shape} does not take the bytes it claims"
    return None


def _are_sizes(values: Any) -> bool:
    # type() because JSON's true is an int in Python
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
