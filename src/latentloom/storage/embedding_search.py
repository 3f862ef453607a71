"""Which stored embeddings are nearest to one, by the cosine of their mean token vectors."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from latentloom.storage.embedding_entries import EmbeddingEntry, Match, SearchResult
from latentloom.storage.embedding_rows import read_entry

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ROWS_AT_A_TIME = 1024


def nearest(
    connection: "DuckDBPyConnection", query: np.ndarray, k: int, encoder: str | None, without: str | None = None
) -> SearchResult:
    """The k embeddings of the query's width with the largest cosines; mean vectors of length 0 have none.

    Args:
        connection: to the store.
        query: mean token vector [D] in float32.
        k: how many.
        encoder: only embeddings of this one; None compares all.
        without: an id that is left out.
    """
    best: list[tuple[float, str]] = []
    num_compared = 0
    length = np.linalg.norm(query)
    for ids, vectors in _vectors(connection, len(query), encoder):
        lengths = np.linalg.norm(vectors, axis=1) * length
        comparable = (lengths > 0) & (np.array(ids) != (without or ""))
        num_compared += int(comparable.sum())
        cosines = np.clip(vectors @ query / np.where(lengths > 0, lengths, 1), -1, 1)
        best += [(float(cosines[row]), ids[row]) for row in np.flatnonzero(comparable)]
        best = sorted(best, key=lambda pair: (-pair[0], pair[1]))[:k]
    return SearchResult(_matches(connection, best), num_compared, cached=False)


def recall(connection: "DuckDBPyConnection", entry: EmbeddingEntry, k: int, encoder: str | None) -> SearchResult | None:
    """The answer of an earlier search for this entry, if it went as far as k and the store has not changed since."""
    rows = connection.execute(
        "SELECT other_id, cosine, num_compared FROM embedding_similarities "
        "WHERE embedding_id = ? AND among IS NOT DISTINCT FROM ? AND candidates = ? ORDER BY cosine DESC, other_id",
        [entry.id, encoder, _candidates(connection, entry.dim, encoder)],
    ).fetchall()
    if not rows or len(rows) < min(k, rows[0][2]):
        return None
    pairs = [(cosine, other) for other, cosine, _ in rows[:k]]
    return SearchResult(_matches(connection, pairs), rows[0][2], cached=True)


def remember(
    connection: "DuckDBPyConnection", entry: EmbeddingEntry, encoder: str | None, result: SearchResult
) -> None:
    """Keep a search's answer in place of the entry's earlier one."""
    candidates = _candidates(connection, entry.dim, encoder)
    rows = [
        [entry.id, match.entry.id, match.cosine, encoder, result.num_compared, candidates] for match in result.matches
    ]
    connection.begin()
    connection.execute(
        "DELETE FROM embedding_similarities WHERE embedding_id = ? AND among IS NOT DISTINCT FROM ?",
        [entry.id, encoder],
    )
    if rows:
        connection.executemany("INSERT INTO embedding_similarities VALUES (?, ?, ?, ?, ?, ?)", rows)
    connection.commit()


def read_mean(connection: "DuckDBPyConnection", embedding_id: str) -> np.ndarray:
    """The mean token vector [D] of an id that is there."""
    row = connection.execute("SELECT mean_vector FROM embeddings WHERE id = ?", [embedding_id]).fetchone()
    assert row is not None
    return np.frombuffer(row[0], np.float32)


def _matches(connection: "DuckDBPyConnection", pairs: list[tuple[float, str]]) -> list[Match]:
    entries = [(read_entry(connection, embedding_id), cosine) for cosine, embedding_id in pairs]
    return [Match(entry, cosine) for entry, cosine in entries if entry is not None]


def _candidates(connection: "DuckDBPyConnection", dim: int, encoder: str | None) -> str:
    """A text that changes when an embedding that a search would compare comes or goes."""
    where, parameters = _condition(dim, encoder)
    row = connection.execute(f"SELECT count(*), bit_xor(hash(id)) FROM embeddings WHERE {where}", parameters).fetchone()
    assert row is not None
    return f"{row[0]} {row[1]}"


def _vectors(connection: "DuckDBPyConnection", dim: int, encoder: str | None) -> Iterator[tuple[list[str], np.ndarray]]:
    where, parameters = _condition(dim, encoder)
    rows = connection.execute(f"SELECT id, mean_vector FROM embeddings WHERE {where}", parameters)
    while batch := rows.fetchmany(ROWS_AT_A_TIME):
        yield [row[0] for row in batch], np.frombuffer(b"".join(row[1] for row in batch), np.float32).reshape(-1, dim)


def _condition(dim: int, encoder: str | None) -> tuple[str, list[Any]]:
    if encoder is None:
        return "dim = ?", [dim]
    return "dim = ? AND encoder = ?", [dim, encoder]
