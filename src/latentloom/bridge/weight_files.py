"""Whether a folder holds a whole model, and a name for what it holds."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentloom.errors import CheckpointError, CorruptFileError, FileError
from latentloom.storage import read_header, write_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: Written last by `latentloom bridge fetch` and by the conversion of a GGUF file.
MARKER = ".complete.json"

#: Settings in config.json that say how a model was written or runs, not what it computes.
_NOT_THE_MODEL = {"transformers_version", "torch_dtype", "dtype", "use_cache", "architectures", "auto_map"}
_SAMPLES, _SAMPLE_BYTES = 4, 64


def require_complete(folder: Path) -> None:
    """Return if a folder holds a config and every tensor that it should.

    Every shard that the index names must be there with a readable header, take the bytes that it claims and hold the
    tensors that the index puts there. The tensors themselves are not read.

    Raises:
        FileError: a file is missing.
        CorruptFileError: a file is cut short or damaged.
    """
    read_json(folder / CONFIG)
    named: dict[str, set[str]] = {}
    for tensor, file in tensor_places(folder).items():
        named.setdefault(file, set()).add(tensor)
    for file, tensors in named.items():
        lacking = tensors - read_header(folder / file).keys()
        if lacking:
            raise CorruptFileError(
                f"{folder / file} lacks {len(lacking)} tensors that {INDEX} puts there, {min(lacking)} first; "
                "download it again"
            )


def tensor_places(folder: Path) -> dict[str, str]:
    """Tensor name -> the file of the folder that holds it.

    Raises:
        FileError: no weights in safetensors, or a shard of the index is missing.
        CorruptFileError: the index or the one file of weights is damaged.
    """
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not all(_is_file_name(file) for file in places.values()):
            raise CorruptFileError(f"{folder / INDEX} names no weights; download it again")
        shards = sorted(set(places.values()))
        missing = [file for file in shards if not (folder / file).is_file()]
        if missing:
            raise FileError(
                f"{folder} lacks {len(missing)} of its {len(shards)} files of weights, {missing[0]} first; download "
                "them again"
            )
        return places
    if (folder / WEIGHTS).is_file():
        return {name: WEIGHTS for name in read_header(folder / WEIGHTS) if name != "__metadata__"}
    pickled = next(iter(sorted(folder.glob("*.bin"))), None)
    found = f"only {pickled.name}, which is not safe to read" if pickled else "none"
    raise FileError(f"{folder} should hold weights as {WEIGHTS} or {INDEX}, but holds {found}; give a whole model")


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits that tell one model from another, the same for every dtype it is loaded in.

    Of the config, the vocabulary, and of every tensor its name, shape, dtype and bytes at four places: any training
    changes these.
    """
    digest = hashlib.sha256()
    config = {name: value for name, value in read_json(folder / CONFIG).items() if name not in _NOT_THE_MODEL}
    digest.update(json.dumps(config, sort_keys=True).encode())
    vocabulary = folder / "tokenizer.json"
    if vocabulary.is_file():
        digest.update(hashlib.sha256(vocabulary.read_bytes()).digest())
    places = tensor_places(folder)
    headers = {file: read_header(folder / file) for file in set(places.values())}
    for name in sorted(places):
        entry = headers[places[name]][name]
        digest.update(f"{name} {entry['shape']} {entry['dtype']}".encode())
        digest.update(_sample(folder / places[name], entry["data_offsets"]))
    return digest.hexdigest()[:16]


def write_marker(folder: Path, facts: Mapping[str, Any]) -> None:
    """Say, as the last thing written, that a folder is whole: the facts, and the size of each of its files."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not _is_bookkeeping(file, folder))
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    write_json(folder / MARKER, {**facts, "files": sizes})


def read_marker(folder: Path) -> dict[str, Any] | None:
    """What `write_marker` wrote; None where there is none.

    Raises:
        FileError: a file that it lists is missing or has another size.
    """
    if not (folder / MARKER).is_file():
        return None
    facts = read_json(folder / MARKER)
    for name, size in facts.get("files", {}).items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            raise FileError(f"{file} is missing or does not have {size} bytes; download the model again")
    return facts


def read_json(path: Path) -> dict[str, Any]:
    """The table in a JSON file.

    Raises:
        CheckpointError: no such file.
        CorruptFileError: it holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; give the folder of a whole model") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not JSON; download or write it again") from error
    if not isinstance(values, dict):
        raise CorruptFileError(f"{path} is not a table; download or write it again")
    return values


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and Path(value).name == value


def _is_bookkeeping(file: Path, folder: Path) -> bool:
    return file.relative_to(folder).parts[0] == ".cache" or file.name == MARKER or file.suffix == ".lock"


def _sample(path: Path, offsets: list[int]) -> bytes:
    """A tensor's bytes at evenly spread places."""
    header_bytes = int.from_bytes(_bytes_at(path, 0, 8), "little") + 8
    begin, end = offsets
    step = max(1, (end - begin - _SAMPLE_BYTES) // max(1, _SAMPLES - 1))
    starts = range(begin, max(begin + 1, end - _SAMPLE_BYTES + 1), step)
    return b"".join(_bytes_at(path, header_bytes + start, min(_SAMPLE_BYTES, end - start)) for start in starts)


def _bytes_at(path: Path, start: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(count)
