"""Rows of the store's `embeddings` table: added, found by the beginning of an id, listed."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentloom.errors import ConfigError, FileError
from latentloom.storage.embedding_entries import EmbeddingEntry

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from latentloom.storage.embedding_tensors import PackedEmbedding

ENTRY_COLUMNS = "id, prompt, encoder, kind, dtype, source_dtype, num_tokens, dim, stored_bytes, created, num_accesses"
MANY = 5  # ids that an error message names


def insert_rows(
    connection: "DuckDBPyConnection",
    packed: Sequence["PackedEmbedding"],
    prompts: Sequence[str],
    encoder: str,
    kind: str,
) -> list[tuple[EmbeddingEntry, bool]]:
    """Add the rows whose ids are not there yet, and count an access of those that are, in the open transaction.

    Returns: for each embedding its entry, and whether it was added; an earlier row's entry where there is one.
    """
    created = now()
    entries: dict[str, EmbeddingEntry] = {}
    results, rows = [], []
    for item, prompt in zip(packed, prompts, strict=True):
        known = entries.get(item.id) or read_entry(connection, item.id)
        if known is None:
            about = (item.id, prompt, encoder, kind, item.dtype, item.source_dtype, item.num_tokens, item.dim)
            row = (*about, len(item.blob), created)
            rows.append((*row, item.mean_vector, item.blob, 0))
            entries[item.id] = entry_of((*row, 0))
        results.append((known or entries[item.id], known is None))
    if rows:
        connection.executemany(f"INSERT INTO embeddings VALUES ({', '.join('?' * 13)})", rows)
    count_accesses(connection, [entry.id for entry, is_new in results if not is_new and entry.id not in entries])
    return results


def count_accesses(connection: "DuckDBPyConnection", ids: Sequence[str]) -> None:
    """Note that embeddings were used; an id that is given twice counts once."""
    if ids:
        connection.execute(
            "UPDATE embeddings SET num_accesses = num_accesses + 1 WHERE id IN (SELECT unnest(?::VARCHAR[]))",
            [list(ids)],
        )


def find_id(connection: "DuckDBPyConnection", path: Path, start: str) -> str:
    """The id that is, or alone begins with, `start`.

    Raises:
        FileError: there is none, or several.
    """
    if read_entry(connection, start) is not None:
        return start
    query = "SELECT id FROM embeddings WHERE starts_with(id, ?) ORDER BY id LIMIT ?"
    ids = [row[0] for row in connection.execute(query, [start, MANY + 1]).fetchall()] if start else []
    if len(ids) == 1:
        return ids[0]
    if ids:
        some = ", ".join(ids[:MANY]) + (", ..." if len(ids) > MANY else "")
        raise FileError(f"several embeddings in {path} begin with {start!r}: {some}; give more of the id")
    raise FileError(f"no embedding {start!r:.80} in {path}; `latentloom store list` shows the ids")


def read_entry(connection: "DuckDBPyConnection", embedding_id: str) -> EmbeddingEntry | None:
    """The entry of a whole id; None where it is not there."""
    row = connection.execute(f"SELECT {ENTRY_COLUMNS} FROM embeddings WHERE id = ?", [embedding_id]).fetchone()
    return None if row is None else entry_of(row)


def find_entry(connection: "DuckDBPyConnection", path: Path, start: str) -> EmbeddingEntry:
    """The entry whose id is, or alone begins with, `start`.

    Raises:
        FileError: there is none, or several.
    """
    entry = read_entry(connection, find_id(connection, path, start))
    assert entry is not None
    return entry


def find_row(connection: "DuckDBPyConnection", path: Path, start: str) -> tuple[EmbeddingEntry, bytes]:
    """The entry whose id is, or alone begins with, `start`, and its compressed tokens.

    One id at a time: this way DuckDB goes by the index and reads no other row's tokens.

    Raises:
        FileError: there is none, or several.
    """
    query = f"SELECT {ENTRY_COLUMNS}, tokens FROM embeddings WHERE id = ?"
    row = connection.execute(query, [start]).fetchone()
    if row is None:
        row = connection.execute(query, [find_id(connection, path, start)]).fetchone()
        assert row is not None
    return entry_of(row[:-1]), row[-1]


def select_entries(
    connection: "DuckDBPyConnection",
    conditions: dict[str, Any],
    limit: int | None = None,
    oldest_first: bool = False,
) -> list[EmbeddingEntry]:
    """Entries that meet all conditions, newest first.

    Args:
        connection: to the store.
        conditions: SQL with one question mark -> its value.
        limit: at most so many.
        oldest_first: the other way round.
    """
    where = " AND ".join(conditions) or "TRUE"
    order = "created, id" if oldest_first else "created DESC, id"
    query = f"SELECT {ENTRY_COLUMNS} FROM embeddings WHERE {where} ORDER BY {order}"
    parameters = list(conditions.values())
    if limit is not None:
        query, parameters = f"{query} LIMIT ?", [*parameters, limit]
    return [entry_of(row) for row in connection.execute(query, parameters).fetchall()]


def entry_of(row: tuple[Any, ...]) -> EmbeddingEntry:
    """The entry in a row of `ENTRY_COLUMNS`."""
    return EmbeddingEntry(*row[:-2], created=row[-2].replace(tzinfo=UTC), num_accesses=row[-1])


def now() -> datetime:
    """The time in UTC, as the tables hold it: without a zone, which DuckDB returns only with a package for zones."""
    return datetime.now(UTC).replace(tzinfo=None)


def moment_before(age: timedelta | None) -> datetime | None:
    """`now()` less an age; None for None.

    Raises:
        ConfigError: the age is negative, or longer than the calendar.
    """
    if age is None:
        return None
    moment = now()
    if not timedelta(0) <= age < moment - datetime.min:
        raise ConfigError(f"an age of {age.days} days; give one from 0 to {(moment - datetime.min).days - 1} days")
    return moment - age
