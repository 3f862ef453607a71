"""Files of sentence vectors: safetensors and .npy of vectors, JSON and JSONL of texts with vectors."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from pydantic_core import to_json

from latentloom.bridge.pairs import read_pairs
from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import atomic_write, load_object, save_object
from latentloom.tensors import SentenceVector

WRITTEN = (".safetensors", ".npy", ".jsonl")
PAIRS = (".json", ".jsonl")


def write_vectors(path: Path, vectors: SentenceVector, texts: Sequence[str], record: dict[str, Any]) -> None:
    """Write vectors in the format that the name asks for.

    Args:
        path: ends in .safetensors, which keeps texts and record; .npy, the bare vectors in float32; or .jsonl, a line
            for each with its text, which `latentloom bridge train` reads as pairs.
        vectors: N of them.
        texts: what each was made from.
        record: how they came about, JSON values.

    Raises:
        FileError: another ending, or a place that cannot be written to.
    """
    require_vector_name(path)
    if path.suffix == ".safetensors":
        save_object(path, vectors, {"texts": list(texts), **record})
        return
    values = vectors.values.float().cpu().numpy()
    with atomic_write(path) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, values, allow_pickle=False)
            return
        with temporary.open("wb") as file:
            for text, vector in zip(texts, values.tolist(), strict=True):
                file.write(to_json({"text": text, "vector": vector}) + b"\n")


def read_vectors(path: Path) -> tuple[SentenceVector, list[str] | None]:
    """The vectors of a file in float32 on the CPU, and the texts they were made from where the file has them.

    Args:
        path: safetensors as `write_vectors` gives them, .npy of shape [D] or [N, D], or pairs as .json or .jsonl.

    Raises:
        FileError: no such file, another format, or no vector.
        CorruptFileError: damaged, or vectors that hold something else than finite numbers.
    """
    if not path.is_file():
        raise FileError(f"{path}: there is no such file; give {_formats()}")
    if path.suffix in PAIRS:
        with TemporaryDirectory() as cache:
            pairs = read_pairs(str(path.absolute()), Path(), latent_dim=None, cache=Path(cache), max_bad_share=0)
            texts, values = pairs.load(range(len(pairs)))
        return SentenceVector(values), texts
    if path.suffix == ".npy":
        values, texts = _read_npy(path), None
    elif path.suffix == ".safetensors":
        values, texts = load_object(path, SentenceVector).values.float(), _recorded_texts(path)
    else:
        raise FileError(f"{path} is no file of vectors; give {_formats()}")
    if not len(values):
        raise FileError(f"{path} holds no vector; give a file of at least one")
    if not bool(values.isfinite().all()):
        raise CorruptFileError(f"{path} holds numbers that are not finite; make the vectors again")
    return SentenceVector(values), texts if texts is not None and len(texts) == len(values) else None


def require_vector_name(path: Path) -> None:
    """Return if vectors can be written under that name.

    Raises:
        FileError: its ending is of no format that is written.
    """
    if path.suffix not in WRITTEN:
        raise FileError(f"{path} names no format that vectors are written in; end it in {', '.join(WRITTEN)}")


def _read_npy(path: Path) -> torch.Tensor:
    try:
        values = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise CorruptFileError(f"{path} is not a .npy file of numbers, or is damaged: {error}") from error
    if not isinstance(values, np.ndarray) or values.ndim not in (1, 2) or values.dtype.kind != "f":
        shape = f"{values.dtype} of shape {list(values.shape)}" if isinstance(values, np.ndarray) else "several arrays"
        raise FileError(f"{path} holds {shape}; give floating-point numbers of shape [D] or [N, D]")
    return torch.from_numpy(np.array(np.atleast_2d(values), dtype=np.float32))


def _recorded_texts(path: Path) -> list[str] | None:
    from latentloom.storage.modules import read_origin

    texts = (read_origin(path).record or {}).get("texts")
    known = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
    return texts if known else None


def _formats() -> str:
    return ".safetensors from `latentloom bridge encode`, .npy of shape [D] or [N, D], or pairs as .json or .jsonl"
