"""Text embeddings kept in one DuckDB file, by their content."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from latentloom.errors import ConfigError, PromptError, ShapeError
from latentloom.storage import embedding_operations, embedding_rows, embedding_search, embedding_upkeep
from latentloom.storage.embedding_codec import StoredDtype
from latentloom.storage.embedding_entries import (
    Analysis,
    CleanResult,
    EmbeddingEntry,
    FileSizes,
    Operation,
    PutResult,
    SearchResult,
    StoreStats,
)
from latentloom.storage.embedding_file import EmbeddingFile

if TYPE_CHECKING:  # whatever handles no tokens works without torch, which takes seconds to import
    from duckdb import DuckDBPyConnection

    from latentloom.storage.embedding_tensors import StoredEmbedding
    from latentloom.tensors import TextEmbeddings

DEFAULT_TIMEOUT = 60.0


class EmbeddingStore:
    """A file of embeddings, the operations on them, and cached answers about them.

    Every call opens the file late and closes it early. In between it holds a lock, so that any number of threads and
    processes may work on one file at a time; a call either happens as a whole or not at all. Where there is no file,
    `put`, `put_many` and `record_operation` make it, and all others say that it is not there.

    An id may be given by its beginning where no other id begins so.

    Args:
        path: the database; None takes `default_path()`.
        timeout: seconds that a call waits for others before it raises FileError, which says who holds the file.

    Raises:
        ConfigError: a timeout that is negative or not finite.
    """

    def __init__(self, path: Path | str | None = None, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._file = EmbeddingFile(path, timeout)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._file.path

    @property
    def timeout(self) -> float:
        """Seconds that a call waits for others."""
        return self._file.timeout

    def put(
        self,
        embeddings: "TextEmbeddings",
        prompt: str,
        encoder: str,
        kind: str = "encoded",
        dtype: StoredDtype | None = None,
    ) -> PutResult:
        """Keep the embedding of one prompt; see `put_many`."""
        return self.put_many(embeddings, [prompt], encoder, kind, dtype)[0]

    def put_many(
        self,
        embeddings: "TextEmbeddings",
        prompts: Sequence[str],
        encoder: str,
        kind: str = "encoded",
        dtype: StoredDtype | None = None,
    ) -> list[PutResult]:
        """Keep the embeddings of several prompts in one transaction; what is there already stays as it is.

        Args:
            embeddings: their true tokens, in float16, bfloat16 or float32.
            prompts: one text per row.
            encoder: fingerprint of what encoded them.
            kind: how they came about: "encoded", or the name of an operation.
            dtype: to store in; None keeps 16-bit numbers bit for bit and stores float32 as float16, unless a number
                lies beyond float16. The result says so.

        Raises:
            ShapeError: another number of prompts, or another dtype.
            PromptError: numbers that are not finite, or a prompt that is not a text.
            ConfigError: an empty encoder or kind, or a `dtype` that is unknown or cannot hold the numbers.
            FileError: the file is in use for too long, cannot be written or is no store.
        """
        _require_texts(prompts=prompts, encoder=encoder, kind=kind)
        from latentloom.storage.embedding_tensors import pack_many

        packed = pack_many(embeddings, prompts, encoder, dtype)
        if not packed:
            return []
        with self._file.adding() as connection:
            connection.begin()
            results = embedding_rows.insert_rows(connection, packed, prompts, encoder, kind)
            connection.commit()
        return [PutResult(entry, is_new, item.note) for item, (entry, is_new) in zip(packed, results, strict=True)]

    def get(self, embedding_id: str) -> "StoredEmbedding":
        """One embedding as it was stored, on the CPU; counted as an access.

        Raises:
            FileError: no such id, or the file cannot be read.
            CorruptFileError: damaged.
        """
        return self.get_many([embedding_id])[0]

    def get_many(self, embedding_ids: Sequence[str]) -> list["StoredEmbedding"]:
        """Several embeddings, in the order of the ids, as one moment saw them; each is counted as accessed once."""
        with self._file.changing() as connection:
            stored = self._read(connection, embedding_ids)
            embedding_rows.count_accesses(connection, [item.entry.id for item in stored])
        return stored

    def find(self, embedding_id: str) -> EmbeddingEntry:
        """What is known of an embedding, without its tokens.

        Raises:
            FileError: no such id, or the file cannot be read.
        """
        with self._file.reading() as connection:
            return embedding_rows.find_entry(connection, self.path, embedding_id)

    def entries(
        self,
        *,
        kind: str | None = None,
        encoder: str | None = None,
        prompt: str | None = None,
        older_than: timedelta | None = None,
        newer_than: timedelta | None = None,
        limit: int | None = None,
    ) -> list[EmbeddingEntry]:
        """Entries that meet all that is given, newest first.

        Args:
            kind, encoder: exactly.
            prompt: a part of the text, in any case.
            older_than, newer_than: age.
            limit: at most so many.

        Raises:
            ConfigError: an age or a limit out of range.
            FileError: the file cannot be read.
        """
        conditions = {
            "kind = ?": kind,
            "encoder = ?": encoder,
            "contains(lower(prompt), lower(?))": prompt,
            "created < ?": embedding_rows.moment_before(older_than),
            "created >= ?": embedding_rows.moment_before(newer_than),
        }
        _require_counts(limit=limit)
        given = {condition: value for condition, value in conditions.items() if value is not None}
        with self._file.reading() as connection:
            return embedding_rows.select_entries(connection, given, limit)

    def analyze(self, embedding_id: str) -> Analysis:
        """Norms, spread and effective dimensions of an embedding; computed once and kept.

        Raises:
            FileError: no such id, or the file cannot be read or written.
        """
        with self._file.reading() as connection:
            found = embedding_rows.find_id(connection, self.path, embedding_id)
            row = connection.execute(
                "SELECT * EXCLUDE (embedding_id) FROM embedding_analysis WHERE embedding_id = ?", [found]
            ).fetchone()
        if row is not None:
            return Analysis(*row)
        from latentloom.storage.embedding_tensors import analyze

        with self._file.reading() as connection:  # which is no access: nobody gets the tokens
            (stored,) = self._read(connection, [found])
        analysis = analyze(stored.embeddings.tokens)
        values = [found, *vars(analysis).values()]
        with self._file.changing() as connection:
            connection.execute(
                f"INSERT INTO embedding_analysis SELECT {', '.join('?' * len(values))} "
                "WHERE EXISTS (SELECT id FROM embeddings WHERE id = ?) ON CONFLICT DO NOTHING",  # removed meanwhile?
                [*values, found],
            )
        return analysis

    def search(
        self,
        query: "str | TextEmbeddings",
        k: int = 10,
        *,
        encoder: str | None = None,
        any_encoder: bool = False,
    ) -> SearchResult:
        """The nearest embeddings by the cosine of mean token vectors; for an id the answer is kept.

        Vectors of different encoders mean different things, and those of different widths cannot be compared at all.

        Args:
            query: an id, which is itself left out, or an embedding of one prompt.
            k: how many.
            encoder: whose embeddings to compare; an id brings its own.
            any_encoder: compare all embeddings of the same width.

        Raises:
            ConfigError: k below 1, or an embedding without `encoder`.
            ShapeError: an embedding of several prompts.
            FileError: no such id, or the file cannot be read.
        """
        if k < 1:
            raise ConfigError(f"k={k}; give how many embeddings to find, 1 or more")
        if isinstance(query, str):
            return self._search_by_id(query, k, encoder, any_encoder)
        from latentloom.storage.embedding_tensors import mean_vector

        if len(query) != 1:
            raise ShapeError(f"a search for {len(query)} embeddings at once; give the embedding of one prompt")
        if encoder is None and not any_encoder:
            raise ConfigError("the query's encoder is not known; give encoder=..., or any_encoder=True to compare all")
        with self._file.reading() as connection:
            return embedding_search.nearest(connection, mean_vector(query), k, None if any_encoder else encoder)

    def record_operation(
        self,
        kind: str,
        inputs: Sequence[str],
        parameters: Mapping[str, object],
        output: str | Sequence[str] | None = None,
        seconds: float = 0.0,
    ) -> int:
        """Note that an operation was done; gives its number.

        Args:
            kind: its name.
            inputs: ids in the order of the operands.
            parameters: JSON values by name.
            output: the id, or the ids, of what came out, where it was stored.
            seconds: how long it took.

        Raises:
            ConfigError: no name, a time that is negative or not finite, or a parameter that JSON cannot hold.
            FileError: an id that is not stored, or the file cannot be written.
        """
        _require_texts(prompts=[], encoder="-", kind=kind)
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ConfigError(f"seconds={seconds}; give how long {kind!r} took, 0 or more")
        outputs = [] if output is None else [output] if isinstance(output, str) else output
        with self._file.adding() as connection:
            given, made = (
                [embedding_rows.find_id(connection, self.path, start) for start in ids] for ids in (inputs, outputs)
            )
            return embedding_operations.insert_operation(connection, kind, given, parameters, made, seconds)

    def operations(self, limit: int = 20, kind: str | None = None) -> list[Operation]:
        """The last operations, newest first."""
        _require_counts(limit=limit)
        with self._file.reading() as connection:
            return embedding_operations.recent_operations(connection, limit, kind)

    def clean(
        self,
        *,
        older_than: timedelta | None = None,
        accessed_fewer_than: int | None = None,
        larger_than: int | None = None,
        kind: str | None = None,
        to_bytes: int | None = None,
        dry_run: bool = False,
    ) -> CleanResult:
        """Remove embeddings that meet all that is given; the record of operations stays.

        The space is used again by later embeddings; `vacuum` gives it back to the disk.

        Args:
            older_than: age.
            accessed_fewer_than: times that they were read, or put again.
            larger_than: bytes of their compressed tokens.
            kind: exactly.
            to_bytes: remove the oldest until all compressed tokens together take at most so many bytes.
            dry_run: only say which.

        Raises:
            ConfigError: nothing is given (that would remove everything), or something out of range.
            FileError: the file cannot be read or written.
        """
        if (older_than, accessed_fewer_than, larger_than, kind, to_bytes) == (None,) * 5:
            raise ConfigError("nothing says what to remove; give an age, a size or a kind")
        _require_counts(accessed_fewer_than=accessed_fewer_than, larger_than=larger_than, to_bytes=to_bytes)
        connection_for = self._file.reading if dry_run else self._file.changing
        with connection_for() as connection:
            return embedding_upkeep.clean(
                connection,
                older_than=older_than,
                accessed_fewer_than=accessed_fewer_than,
                larger_than=larger_than,
                kind=kind,
                to_bytes=to_bytes,
                dry_run=dry_run,
            )

    def vacuum(self, track: embedding_upkeep.Track = lambda work, description: work) -> FileSizes:
        """Give unused space back to the disk: the file is written anew, and replaced once the copy is whole.

        Args:
            track: shows progress; gets the parts to copy and a word, and gives the parts back.

        Raises:
            FileError: no room for the copy, or the file cannot be read or written.
        """
        with self._file.alone() as deadline:
            return embedding_upkeep.rewrite(self.path, deadline, track)

    def export(self, folder: Path | str, tokens: bool = True) -> None:
        """Write the six tables as Parquet files into a folder, which is replaced as a whole.

        Args:
            folder: where to.
            tokens: with the tokens, decompressed: little-endian numbers of `dtype`, num_tokens rows of dim.

        Raises:
            FileError: the folder cannot be written, or the file cannot be read.
            CorruptFileError: damaged.
        """
        embedding_upkeep.require_export_folder(Path(folder))
        with self._file.reading() as connection:
            embedding_upkeep.export(connection, Path(folder), tokens)

    def stats(self) -> StoreStats:
        """The whole store in numbers.

        Raises:
            FileError: the file cannot be read.
        """
        with self._file.reading() as connection:
            return embedding_upkeep.count(connection, self.path)

    def _read(self, connection: "DuckDBPyConnection", embedding_ids: Sequence[str]) -> "list[StoredEmbedding]":
        from latentloom.storage.embedding_tensors import unpack_many

        # each is decompressed while the next is read
        return unpack_many(embedding_rows.find_row(connection, self.path, start) for start in embedding_ids)

    def _search_by_id(self, start: str, k: int, encoder: str | None, any_encoder: bool) -> SearchResult:
        with self._file.reading() as connection:
            entry = embedding_rows.find_entry(connection, self.path, start)
            among = None if any_encoder else encoder or entry.encoder
            kept = embedding_search.recall(connection, entry, k, among)
        if kept is not None:
            return kept
        with self._file.changing() as connection:
            embedding_rows.find_id(connection, self.path, entry.id)  # not if it was removed meanwhile
            query = embedding_search.read_mean(connection, entry.id)
            result = embedding_search.nearest(connection, query, k, among, without=entry.id)
            embedding_search.remember(connection, entry, among, result)
        return result


def _require_texts(prompts: Sequence[str], encoder: str, kind: str) -> None:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise PromptError("prompts must be a list of texts; write [prompt]")
    for name, value in (("encoder", encoder), ("kind", kind)):
        if not value.strip():
            raise ConfigError(f"{name}={value!r} names nothing; give a text that tells one {name} from another")


def _require_counts(**counts: int | None) -> None:
    for name, value in counts.items():
        if value is not None and not 0 <= value < 2**63:
            raise ConfigError(f"{name}={value}; give a number from 0")
