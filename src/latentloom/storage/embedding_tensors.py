"""Text embeddings between tensors and what the store keeps of them."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError, PromptError, ShapeError
from latentloom.storage.embedding_codec import ITEM_BYTES, compress, content_id, decompress
from latentloom.storage.embedding_entries import Analysis, EmbeddingEntry
from latentloom.tensors import TextEmbeddings

Item = TypeVar("Item")
Result = TypeVar("Result")

TORCH_DTYPES = {name: getattr(torch, name) for name in ITEM_BYTES}
VARIANCE_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class StoredEmbedding:
    """One embedding as it was stored: what is known about it, and its tokens (one row)."""

    entry: EmbeddingEntry
    embeddings: TextEmbeddings


@dataclass(frozen=True, eq=False)
class PackedEmbedding:
    """One embedding ready for its row in the store; `note` says when its dtype is not the input's, and why."""

    id: str
    dtype: str
    source_dtype: str
    num_tokens: int
    dim: int
    mean_vector: bytes
    blob: bytes
    note: str | None


def pack(tokens: Float[Tensor, "L D"], prompt: str, encoder: str, dtype: str | None) -> PackedEmbedding:
    """Encode the true tokens of one prompt.

    Args:
        tokens: L tokens of D channels, in float16, bfloat16 or float32.
        prompt: the text.
        encoder: its encoder's fingerprint.
        dtype: to store in; None keeps float16 and bfloat16 and stores float32 as float16, unless a number lies beyond
            float16: then it stays float32, and the note says so.

    Raises:
        ShapeError: another dtype.
        PromptError: numbers that are not finite, or a text that is not Unicode.
        ConfigError: an unknown `dtype`, or one that cannot hold the numbers.
    """
    source = str(tokens.dtype).removeprefix("torch.")
    if source not in ITEM_BYTES:
        raise ShapeError(f"tokens of dtype {source}; give {', '.join(ITEM_BYTES)}")
    if dtype is not None and dtype not in ITEM_BYTES:
        raise ConfigError(f"dtype={dtype!r} is unknown; use {', '.join(ITEM_BYTES)}, or none to let the input decide")
    tokens = tokens.detach().cpu()
    if not _is_finite(tokens):
        raise PromptError(f"the embedding of {prompt!r:.80} has numbers that are not finite; encode it in float32")
    stored, note = _in_stored_dtype(tokens, source, dtype)
    stored_dtype = str(stored.dtype).removeprefix("torch.")
    raw = stored.contiguous().view(torch.uint8).numpy().reshape(-1)
    try:
        name = content_id(
            raw, prompt=prompt, encoder=encoder, dtype=stored_dtype, num_tokens=len(tokens), dim=tokens.shape[1]
        )
    except UnicodeEncodeError as error:
        raise PromptError(f"the prompt {prompt!a:.80} or its encoder's name is not valid Unicode; mend it") from error
    blob = compress(raw, ITEM_BYTES[stored_dtype])
    return PackedEmbedding(name, stored_dtype, source, len(tokens), tokens.shape[1], _mean_bytes(stored), blob, note)


def unpack(blob: bytes, entry: EmbeddingEntry) -> TextEmbeddings:
    """The embedding of a row, bit for bit.

    Raises:
        CorruptFileError: damaged.
    """
    item_bytes = ITEM_BYTES[entry.dtype]
    raw = decompress(blob, entry.num_tokens * entry.dim * item_bytes, item_bytes)
    tokens = torch.from_numpy(raw).view(TORCH_DTYPES[entry.dtype]).view(entry.num_tokens, entry.dim)
    return TextEmbeddings(tokens, torch.tensor([entry.num_tokens]))


def pack_many(
    embeddings: TextEmbeddings, prompts: Sequence[str], encoder: str, dtype: str | None
) -> list[PackedEmbedding]:
    """`pack` for each row, in threads.

    Raises:
        ShapeError, PromptError, ConfigError: as `pack`, or another number of prompts than of rows.
    """
    if len(embeddings) != len(prompts):
        raise ShapeError(f"{len(embeddings)} embeddings and {len(prompts)} prompts; give one prompt per embedding")
    rows = list(zip(embeddings.to_list(), prompts, strict=True))
    return _in_threads(lambda row: pack(row[0], row[1], encoder, dtype), rows)


def unpack_many(rows: Iterable[tuple[EmbeddingEntry, bytes]]) -> list[StoredEmbedding]:
    """`unpack` for each row, in threads.

    Raises:
        CorruptFileError: one is damaged.
    """
    return _in_threads(lambda row: StoredEmbedding(row[0], unpack(row[1], row[0])), rows)


def mean_vector(embeddings: TextEmbeddings) -> np.ndarray:
    """The mean [D] of the tokens of the only prompt, in float32; zeros where it has none."""
    return np.frombuffer(_mean_bytes(embeddings.tokens.detach().cpu()), np.float32)


def analyze(tokens: Float[Tensor, "L D"]) -> Analysis:
    """Lengths, spread and dimensions of the tokens of one prompt; zeros where it has none.

    The number of effective dimensions is the participation ratio of the principal components' variances,
    (sum v)^2 / sum v^2: k for a cloud that is equally wide in k directions and flat in all others.

    Args:
        tokens: L tokens of D channels.

    Source: the WanVideo document, "WanVideoEmbeddingAnalyzer".
    """
    values = tokens.float()
    if not len(values):
        return Analysis(*([0.0] * 9), num_components=0)
    norms = values.norm(dim=1)
    centred = values - values.mean(dim=0)
    # of the L x L inner products: the same variances as those of the D x D covariance, and never more than 512
    variances = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).flip(0)
    total, squares = variances.sum().item(), variances.square().sum().item()
    shares = variances.cumsum(0) / max(total, 1e-30)
    return Analysis(
        norm_mean=norms.mean().item(),
        norm_std=norms.std(correction=0).item(),
        norm_min=norms.min().item(),
        norm_max=norms.max().item(),
        mean=values.mean().item(),
        std=values.std(correction=0).item(),
        minimum=values.min().item(),
        maximum=values.max().item(),
        effective_dim=total**2 / squares if squares > 0 else 0.0,
        num_components=int((shares < VARIANCE_SHARE).sum()) + 1 if squares > 0 else 0,
    )


def _is_finite(tokens: Float[Tensor, "L D"]) -> bool:
    # a sum of finite numbers can overflow, one with an infinity or a NaN never comes out finite: mostly one pass
    return bool(tokens.float().sum().isfinite()) or bool(tokens.isfinite().all())


def _in_stored_dtype(tokens: Float[Tensor, "L D"], source: str, dtype: str | None) -> tuple[Tensor, str | None]:
    """The tokens as they are kept, and what to say about it."""
    wanted = dtype or ("float16" if source == "float32" else source)
    if wanted == source:
        return tokens, None
    stored = tokens.to(TORCH_DTYPES[wanted])
    if _is_finite(stored):
        return stored, f"{'widened' if wanted == 'float32' else 'rounded'} from {source} to {wanted}"
    largest = tokens.abs().max().item()
    if dtype is not None:
        raise ConfigError(
            f"{wanted} cannot hold {largest:g}, the largest number of this embedding; store it as float32"
        )
    return tokens, f"kept as float32: its largest number, {largest:g}, is beyond float16"


def _mean_bytes(tokens: Float[Tensor, "L D"]) -> bytes:
    mean = tokens.float().mean(dim=0) if len(tokens) else torch.zeros(tokens.shape[1])
    return mean.numpy().tobytes()


def _in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results in order; reading, hashing and compression let other threads run."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(work, items))
