"""Prompt pairs, encoded once and kept: building the cache of embeddings that training reads."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.delta.cache_files import (
    DTYPES,
    SIDES,
    cache_suffix,
    describe,
    first_not_finite,
    read_cache,
    stored_description,
    write_cache,
)
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.errors import ConfigError, FileError, PromptError
from latentloom.runs import track
from latentloom.storage import read_header, require_writable
from latentloom.tensors import TextEmbeddings

__all__ = ["PairEmbeddings", "build_cache", "cache_suffix", "read_cache", "shard_folder", "write_cache"]

Encode = Callable[[list[str]], TextEmbeddings]


def build_cache(
    pairs: Sequence[PromptPair],
    encode: Encode,
    encoder: str,
    out: Path | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shard_size: int = 64,
) -> PairEmbeddings:
    """Encode both sides of every pair and write the result to `out`.

    Finished shards lie beside `out` until the end. An interrupted build takes up those that hold the same prompts by
    the same encoder in the same dtype; its result is that of an uninterrupted one, bit for bit.

    Args:
        pairs: what to encode.
        encode: prompts to embeddings; called with at most `shard_size` prompts of one side.
        encoder: its fingerprint.
        out: ends in .npz or .safetensors.
        dtype: of the stored tokens, float32 or bfloat16.
        shard_size: pairs that are encoded and saved together.

    Raises:
        ConfigError: no pairs, or a setting out of range.
        FileError: `out` has another suffix or cannot be written to.
        PromptError: an embedding that is not finite.
    """
    cache_suffix(out)
    require_writable(out)
    if not pairs:
        raise ConfigError("no pairs to encode; give at least one prompt with its rewrite")
    if dtype not in DTYPES.values() or shard_size < 1:
        raise ConfigError(
            f"a cache in {dtype} from shards of {shard_size}; the dtype is {' or '.join(DTYPES)}, a shard has 1 or more"
        )
    folder = shard_folder(out)
    starts = range(0, len(pairs), shard_size)
    files = [folder / f"{number:05d}.safetensors" for number in range(len(starts))]
    for start, file in track(list(zip(starts, files, strict=True)), "encoding pairs"):
        shard = list(pairs[start : start + shard_size])
        if not _is_done(file, shard, encoder, dtype):
            write_cache(file, _encode_shard(shard, start, encode, encoder, dtype))
    cache = _join(files, list(pairs), encoder)
    write_cache(out, cache)
    shutil.rmtree(folder)
    return cache


def shard_folder(out: Path | str) -> Path:
    """Where the shards of an unfinished build of `out` lie."""
    return Path(f"{out}.shards")


def _is_done(file: Path, shard: list[PromptPair], encoder: str, dtype: torch.dtype) -> bool:
    try:
        if stored_description(file) != describe(shard, encoder, dtype):
            return False
        read_cache(file)
    except FileError:  # not there yet, or damaged: either way it is encoded
        return False
    return True


def _encode_shard(
    shard: list[PromptPair], start: int, encode: Encode, encoder: str, dtype: torch.dtype
) -> PairEmbeddings:
    """One shard on the CPU; the sides are encoded apart, since a batch of like lengths has little padding."""
    sides = {}
    for side in SIDES:
        prompts = [getattr(pair, side) for pair in shard]
        sides[side] = encode(prompts).to("cpu", dtype)
        row = first_not_finite(sides[side])
        if row is not None:
            raise PromptError(
                f"the {side} prompt of pair {start + row + 1} has an embedding with numbers that are not finite: "
                f"{prompts[row]!r:.80}; encode in float32, or leave the pair out"
            )
    return PairEmbeddings(**sides, pairs=shard, encoder=encoder)


def _join(files: list[Path], pairs: list[PromptPair], encoder: str) -> PairEmbeddings:
    """All shards in one; what is held beyond the result is a single shard."""
    tokens: dict[str, Float[Tensor, "N D"]] = {}
    lengths: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    filled = dict.fromkeys(SIDES, 0)
    totals = {side: sum(read_header(file)[f"{side}_tokens"]["shape"][0] for file in files) for side in SIDES}
    for file in files:
        shard = read_cache(file)
        for side in SIDES:
            part: TextEmbeddings = getattr(shard, side)
            whole = tokens.setdefault(side, part.tokens.new_empty(totals[side], part.dim))
            end = filled[side] + len(part.tokens)
            whole[filled[side] : end] = part.tokens
            filled[side] = end
            lengths[side].append(part.lengths)
    joined = {side: TextEmbeddings(tokens[side], torch.cat(lengths[side])) for side in SIDES}
    return PairEmbeddings(**joined, pairs=pairs, encoder=encoder)
