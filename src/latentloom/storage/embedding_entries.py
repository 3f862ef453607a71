"""What the embedding store answers with, in plain numbers and texts."""

from dataclasses import dataclass, field
from datetime import datetime

PADDED_LENGTH = 512  # as in latentloom.tensors, which takes seconds to import


@dataclass(frozen=True)
class EmbeddingEntry:
    """What is known of a stored embedding without reading its tokens.

    Args:
        id: hash of the content.
        prompt: the text.
        encoder: fingerprint of what encoded it.
        kind: how it came about: "encoded", or the operation.
        dtype: of the tokens as stored.
        source_dtype: of the tokens as given.
        num_tokens: the true length; padding is not stored.
        dim: channels per token.
        stored_bytes: of the compressed tokens.
        created: when it was first put, in UTC.
        num_accesses: how often it had been read, or put again, when this was looked up; no part of a comparison.
    """

    id: str
    prompt: str
    encoder: str
    kind: str
    dtype: str
    source_dtype: str
    num_tokens: int
    dim: int
    stored_bytes: int
    created: datetime
    num_accesses: int = field(default=0, compare=False)

    @property
    def true_bytes(self) -> int:
        """Of the true tokens in 16 bits per number, uncompressed."""
        return self.num_tokens * self.dim * 2

    @property
    def padded_bytes(self) -> int:
        """Of the tensor [512, D] in float32 that hosts hand around; a longer prompt counts with its own length."""
        return max(PADDED_LENGTH, self.num_tokens) * self.dim * 4


@dataclass(frozen=True)
class PutResult:
    """What became of an embedding.

    Args:
        entry: its entry; the earlier one where the same content was there already.
        is_new: whether a row was added.
        note: says when the stored dtype is not the given one, and why.
    """

    entry: EmbeddingEntry
    is_new: bool
    note: str | None

    @property
    def id(self) -> str:
        return self.entry.id


@dataclass(frozen=True)
class Analysis:
    """Statistics of the tokens of one embedding.

    Args:
        norm_mean, norm_std, norm_min, norm_max: of the tokens' L2 norms.
        mean, std, minimum, maximum: of all numbers.
        effective_dim: participation ratio of the principal components' variances.
        num_components: principal components that hold 90 % of the variance.
    """

    norm_mean: float
    norm_std: float
    norm_min: float
    norm_max: float
    mean: float
    std: float
    minimum: float
    maximum: float
    effective_dim: float
    num_components: int


@dataclass(frozen=True)
class Match:
    """A stored embedding, and the cosine of its mean token vector to the query's."""

    entry: EmbeddingEntry
    cosine: float


@dataclass(frozen=True)
class SearchResult:
    """The nearest embeddings, nearest first; `num_compared` stood to choose; `cached` if nothing was computed anew."""

    matches: list[Match]
    num_compared: int
    cached: bool


@dataclass(frozen=True)
class Operation:
    """A recorded operation on embeddings: which ids went in and came out, with what settings, in how many seconds."""

    number: int
    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[str, object]
    seconds: float
    created: datetime


@dataclass(frozen=True)
class CleanResult:
    """The entries that were removed, or that a dry run would remove."""

    removed: list[EmbeddingEntry]
    dry_run: bool

    @property
    def stored_bytes(self) -> int:
        """Of their compressed tokens."""
        return sum(entry.stored_bytes for entry in self.removed)


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the database file before and after it was rewritten."""

    before: int
    after: int


@dataclass(frozen=True)
class StoredGroup:
    """The embeddings of one encoder, kind, dtype and width.

    Args:
        stored_bytes: of the compressed tokens.
        true_bytes: of the true tokens in 16 bits per number.
        padded_bytes: of [512, D] float32 tensors.
    """

    encoder: str
    kind: str
    dtype: str
    dim: int
    num_embeddings: int
    num_tokens: int
    stored_bytes: int
    true_bytes: int
    padded_bytes: int


@dataclass(frozen=True)
class OperationTotal:
    """How often an operation was recorded, and its seconds together."""

    kind: str
    num_operations: int
    seconds: float


@dataclass(frozen=True)
class StoreStats:
    """The whole store in numbers; a ratio is bytes before by bytes after, None for an empty store.

    Args:
        file_bytes: of the database, with tables, mean vectors, index and space that vacuum would free.
        num_embeddings, num_tokens: what is stored.
        stored_bytes: of the compressed tokens.
        true_bytes: of the true tokens in 16 bits per number.
        padded_bytes: of [512, D] float32 tensors.
        num_analyses, num_similarities: cached answers.
        groups: by encoder, kind, dtype and width.
        operations: by kind.
    """

    file_bytes: int
    num_embeddings: int
    num_tokens: int
    stored_bytes: int
    true_bytes: int
    padded_bytes: int
    num_analyses: int
    num_similarities: int
    groups: list[StoredGroup]
    operations: list[OperationTotal]

    @property
    def ratio_to_padded(self) -> float | None:
        """Padded float32 bytes by compressed token bytes: most of it is padding left out."""
        return self.padded_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def ratio_to_true(self) -> float | None:
        """True 16-bit bytes by compressed token bytes: what compression alone saves."""
        return self.true_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def file_ratio_to_padded(self) -> float | None:
        """Padded float32 bytes by the bytes of the whole file."""
        return self.padded_bytes / self.file_bytes if self.num_embeddings else None

    @property
    def file_ratio_to_true(self) -> float | None:
        """True 16-bit bytes by the bytes of the whole file."""
        return self.true_bytes / self.file_bytes if self.num_embeddings else None
