"""The padded caches that the first Embedding Delta tools wrote."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.errors import CorruptFileError, FileError, ShapeError
from latentloom.tensors import TextEmbeddings

SIDES = ("base", "rew")
PADDED_KEYS = frozenset(f"{side}_{part}" for side in SIDES for part in "EML")
ONE_MASK_KEYS = frozenset({"E_base", "E_rew", "M", "L"})

_AGAIN = "cache the pairs again from their JSONL file with `latentloom delta cache`"


def is_legacy(path: Path | str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the arrays are the padded form, with a mask and lengths for each side.

    Raises:
        FileError: they are the later padded form, which cannot be read rightly.
    """
    if arrays.keys() >= ONE_MASK_KEYS:
        raise FileError(
            f"{path} holds E_base, E_rew, M, L: one mask for both sides, so the token counts of the rewrites are lost; "
            f"{_AGAIN}"
        )
    return arrays.keys() >= PADDED_KEYS


def read_legacy(path: Path | str, arrays: dict[str, np.ndarray]) -> PairEmbeddings:
    """The padded arrays without their padding; texts and encoder are not in them.

    Args:
        path: named in what is refused.
        arrays: per side E [B, P, D] tokens, M [B, P] mask, L [B] lengths; emptied side by side to save memory.

    Raises:
        CorruptFileError: mask and lengths, or the two sides, contradict each other.
    """
    try:
        base, rewritten = (_side(path, name, *(arrays.pop(f"{name}_{part}") for part in "EML")) for name in SIDES)
        return PairEmbeddings(base, rewritten)
    except ShapeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}; {_AGAIN}") from error


def _side(path: Path | str, name: str, tokens: np.ndarray, mask: np.ndarray, lengths: np.ndarray) -> TextEmbeddings:
    shapes = f"{name}_E, {name}_M and {name}_L are {tokens.shape}, {mask.shape} and {lengths.shape}"
    if tokens.ndim != 3 or mask.shape != tokens.shape[:2] or lengths.shape != tokens.shape[:1]:
        raise CorruptFileError(f"{path} is damaged: {shapes}, not [B, P, D], [B, P] and [B]; {_AGAIN}")
    if tokens.dtype.kind != "f" or mask.dtype.kind not in "biuf" or lengths.dtype.kind not in "iuf":
        kinds = f"{tokens.dtype}, {mask.dtype} and {lengths.dtype}"
        raise CorruptFileError(f"{path} is damaged: {name}_E, {name}_M and {name}_L are {kinds}; {_AGAIN}")
    # float32 holds all that float16 does, and more than any encoder computes in
    embeddings = TextEmbeddings.from_padded(
        torch.from_numpy(tokens.astype(np.float32, copy=False)), mask=torch.from_numpy(mask.astype(bool))
    )
    counted = embeddings.lengths.numpy()
    if (counted != lengths).any():
        row = int(np.flatnonzero(counted != lengths)[0])
        raise CorruptFileError(
            f"{path} is damaged: {name}_M marks {counted[row]} tokens of pair {row}, {name}_L says {lengths[row]}; "
            f"{_AGAIN}"
        )
    return embeddings
