"""Encoded prompt pairs as .npz and .safetensors files; both give back exactly what was written."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentloom.delta.legacy_cache import is_legacy, read_legacy
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.storage import atomic_write, read_module, read_npz, save_module
from latentloom.storage.modules import read_origin
from latentloom.tensors import TextEmbeddings

SUFFIXES = (".npz", ".safetensors")
KIND = "PairEmbeddings"
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SIDES = ("base", "rewritten")
SIDE_ARRAYS = frozenset(f"{side}_{part}" for side in SIDES for part in ("tokens", "lengths"))

_AGAIN = "write it again with `latentloom delta cache`"


def write_cache(path: Path | str, cache: PairEmbeddings) -> None:
    """Write encoded pairs in the format that the suffix names; the tensors are not copied as a whole.

    An npz file holds `base_tokens` [N, D] and `base_lengths` [B], `rewritten_tokens` and `rewritten_lengths`, and in
    `metadata` and `pairs` JSON as UTF-8 bytes. numpy has no bfloat16: it is stored as its bit patterns, in uint16.

    Args:
        path: ends in .npz or .safetensors.
        cache: in float32 or bfloat16.

    Raises:
        FileError: another suffix, or a place that cannot be written to.
        ShapeError: another dtype.
    """
    suffix = cache_suffix(path)
    if cache.base.dtype not in DTYPES.values():
        raise ShapeError(f"a cache of dtype {cache.base.dtype}; it is stored in {' or '.join(DTYPES)}, convert it")
    tensors = _tensors(cache)
    if suffix == ".safetensors":
        save_module(path, tensors, KIND, describe(cache.pairs, cache.encoder, cache.base.dtype))
        return
    description = _json_bytes({"class": KIND, **describe(cache.pairs, cache.encoder, cache.base.dtype)})
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, tensor in {"metadata": description, **tensors}.items():
            # with a date of its own, each writing of one cache would give another file
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as file:
                for part in _npy_parts(tensor):
                    file.write(part)


def read_cache(path: Path | str) -> PairEmbeddings:
    """What `write_cache` wrote, or the padded npz of the first Embedding Delta tools made ragged, on the CPU.

    Raises:
        FileError: no such file, another suffix, or a file that holds something else.
        CorruptFileError: damaged, or its parts contradict each other.
    """
    try:
        if cache_suffix(path) == ".safetensors":
            return _read_safetensors(path)
        arrays = read_npz(path)
        if is_legacy(path, arrays):
            return _all_finite(path, read_legacy(path, arrays))
        return _read_npz(path, arrays)
    except ShapeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error


def cache_suffix(path: Path | str) -> str:
    """The suffix of a cache file, `.npz` or `.safetensors`.

    Raises:
        FileError: it is another.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise FileError(f"{path} ends in {suffix!r}; encoded pairs are stored as {' or '.join(SUFFIXES)}")
    return suffix


def describe(pairs: Sequence[PromptPair] | None, encoder: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """What a file says about its tensors: the digest of the texts, the encoder and the dtype."""
    digest = None if pairs is None else hashlib.sha256(_pairs_text(pairs)).hexdigest()
    return {"pairs": digest, "encoder": encoder, "dtype": str(dtype).removeprefix("torch.")}


def stored_description(path: Path | str) -> dict[str, Any] | None:
    """The same, from the header of a safetensors file; None where it holds something else.

    Raises:
        FileError: no such file, or not one of this package's.
        CorruptFileError: damaged.
    """
    origin = read_origin(path)
    return origin.config if origin.kind == KIND else None


def _tensors(cache: PairEmbeddings) -> dict[str, Tensor]:
    tensors = {}
    for name, side in zip(SIDES, (cache.base, cache.rewritten), strict=True):
        tensors |= {f"{name}_tokens": side.tokens.detach().cpu(), f"{name}_lengths": side.lengths.cpu()}
    if cache.pairs is not None:
        tensors["pairs"] = _as_bytes(_pairs_text(cache.pairs))
    return tensors


def _npy_parts(tensor: Tensor) -> Iterator[bytes | memoryview]:
    """The content of an npy file: its header, then the values without a copy of them."""
    tensor = tensor.contiguous()
    array = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    yield header.getvalue()
    if array.size:
        yield array.data.cast("B")


def _read_npz(path: Path | str, arrays: dict[str, np.ndarray]) -> PairEmbeddings:
    if arrays.keys() - {"pairs"} != {"metadata", *SIDE_ARRAYS}:
        held = ", ".join(map(repr, arrays))[:200] or "nothing"
        raise FileError(f"{path} holds {held} and no encoded pairs; give a file of `latentloom delta cache`")
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except (TypeError, ValueError) as error:  # texts, or numbers of another byte order
        raise CorruptFileError(f"{path} is damaged: it holds an array of a kind that caches never have") from error
    config = _json(path, "metadata", tensors.pop("metadata"))
    if not isinstance(config, dict):
        raise CorruptFileError(f"{path} is damaged: what it says about itself is no table; {_AGAIN}")
    if config.get("dtype") == "bfloat16":
        for name in ("base_tokens", "rewritten_tokens"):
            if tensors[name].dtype != torch.uint16:
                raise CorruptFileError(f"{path} is damaged: its {name} are no bit patterns of bfloat16; {_AGAIN}")
            tensors[name] = tensors[name].view(torch.bfloat16)
    return _rebuilt(path, tensors, config)


def _read_safetensors(path: Path | str) -> PairEmbeddings:
    # the kind is in the header: a checkpoint of gigabytes given by mistake is refused before it is read
    if stored_description(path) is None:
        raise FileError(f"{path} holds {read_origin(path).kind}; give a file of `latentloom delta cache`")
    stored = read_module(path)
    if stored.tensors.keys() - {"pairs"} != SIDE_ARRAYS:
        raise CorruptFileError(f"{path} is damaged: tensors are missing or not known; {_AGAIN}")
    return _rebuilt(path, stored.tensors, stored.config)


def _rebuilt(path: Path | str, tensors: dict[str, Tensor], config: Mapping[str, Any]) -> PairEmbeddings:
    encoder, dtype = config.get("encoder"), config.get("dtype")
    if not isinstance(encoder, str | None) or not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptFileError(f"{path} is damaged: what it says about itself has the wrong types; {_AGAIN}")
    sides = {
        name: _side(path, name, tensors[f"{name}_tokens"], tensors[f"{name}_lengths"], DTYPES[dtype]) for name in SIDES
    }
    pairs = _read_pairs(path, tensors["pairs"]) if "pairs" in tensors else None
    if describe(pairs, encoder, DTYPES[dtype])["pairs"] != config.get("pairs"):
        raise CorruptFileError(f"{path} is damaged: its texts are not those that were encoded; {_AGAIN}")
    return _all_finite(path, PairEmbeddings(**sides, pairs=pairs, encoder=encoder))


def _side(path: Path | str, name: str, tokens: Tensor, lengths: Tensor, dtype: torch.dtype) -> TextEmbeddings:
    if (tokens.dtype, tokens.ndim, lengths.dtype, lengths.ndim) != (dtype, 2, torch.int64, 1):
        raise CorruptFileError(
            f"{path} is damaged: {name}_tokens and {name}_lengths are {tokens.dtype} {list(tokens.shape)} and "
            f"{lengths.dtype} {list(lengths.shape)}, not {dtype} [N, D] and int64 [B]; {_AGAIN}"
        )
    # each by itself too: a sum of huge lengths can wrap around to the right number
    if lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= len(tokens):
        raise CorruptFileError(f"{path} is damaged: a length of {name}_lengths is not 0 to {len(tokens)}; {_AGAIN}")
    return TextEmbeddings(tokens, lengths)


def _read_pairs(path: Path | str, content: Tensor) -> list[PromptPair]:
    rows = _json(path, "pairs", content)
    sound = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 2 and all(isinstance(text, str) for text in row) for row in rows
    )
    if not sound:
        raise CorruptFileError(f"{path} is damaged: its texts are no pairs; {_AGAIN}")
    return [PromptPair(*row) for row in rows]


def _all_finite(path: Path | str, cache: PairEmbeddings) -> PairEmbeddings:
    for name, side in zip(SIDES, (cache.base, cache.rewritten), strict=True):
        row = first_not_finite(side)
        if row is not None:
            raise CorruptFileError(f"{path} is damaged: {name} prompt {row} has numbers that are not finite; {_AGAIN}")
    return cache


def first_not_finite(embeddings: TextEmbeddings) -> int | None:
    """The row of the first prompt with a NaN or an infinity; None where all numbers are finite."""
    start = 0
    for chunk in embeddings.tokens.split(4096):  # a mask over everything would take as much memory again
        wrong = ~chunk.isfinite().all(dim=1)
        if wrong.any():
            token = start + int(wrong.nonzero()[0])
            return int((embeddings.lengths.cumsum(0) <= token).sum())
        start += len(chunk)
    return None


def _pairs_text(pairs: Sequence[PromptPair]) -> bytes:
    return json.dumps([[pair.base, pair.rewritten] for pair in pairs]).encode()


def _json_bytes(value: object) -> Tensor:
    return _as_bytes(json.dumps(value, sort_keys=True).encode())


def _as_bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _json(path: Path | str, name: str, content: Tensor) -> Any:
    try:
        if content.dtype != torch.uint8 or content.ndim != 1:
            raise ValueError(f"{content.dtype} {tuple(content.shape)} are no bytes")
        return json.loads(content.numpy().tobytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged: its {name} cannot be read; {_AGAIN}") from error
