"""The store as a whole: counted, cleaned, shrunk, exported."""

import shutil
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage.atomic import replace_folder, require_writable
from latentloom.storage.embedding_codec import ITEM_BYTES, decompress
from latentloom.storage.embedding_entries import (
    PADDED_LENGTH,
    CleanResult,
    EmbeddingEntry,
    FileSizes,
    OperationTotal,
    StoredGroup,
    StoreStats,
)
from latentloom.storage.embedding_rows import moment_before, select_entries
from latentloom.storage.embedding_schema import SETTINGS, TABLES, connect, discard, make_tables, put_in_place

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Track = Callable[[list[tuple[int, int]], str], Iterable[tuple[int, int]]]

BATCH_BYTES = 256 * 2**20  # copied in one transaction, which DuckDB holds in memory
ROWS_PER_GROUP = 64  # of a Parquet file: a writer holds one group in memory
TOKENS_ARE = "little-endian numbers of the column dtype, num_tokens rows of dim"


def count(connection: "DuckDBPyConnection", path: Path) -> StoreStats:
    """The whole store in numbers."""
    groups = connection.execute(
        "SELECT encoder, kind, dtype, dim, count(*), sum(num_tokens), sum(stored_bytes), sum(num_tokens * dim * 2), "
        "sum(greatest(num_tokens, ?) * dim * 4) FROM embeddings GROUP BY ALL ORDER BY ALL",
        [PADDED_LENGTH],
    ).fetchall()
    operations = connection.execute(
        "SELECT kind, count(*), sum(seconds) FROM vector_operations GROUP BY kind ORDER BY kind"
    ).fetchall()
    counts = connection.execute(
        "SELECT (SELECT count(*) FROM embedding_analysis), (SELECT count(*) FROM embedding_similarities)"
    ).fetchone()
    assert counts is not None
    stored = [StoredGroup(*group) for group in groups]
    return StoreStats(
        file_bytes=path.stat().st_size,
        num_embeddings=sum(group.num_embeddings for group in stored),
        num_tokens=sum(group.num_tokens for group in stored),
        stored_bytes=sum(group.stored_bytes for group in stored),
        true_bytes=sum(group.true_bytes for group in stored),
        padded_bytes=sum(group.padded_bytes for group in stored),
        num_analyses=counts[0],
        num_similarities=counts[1],
        groups=stored,
        operations=[OperationTotal(*total) for total in operations],
    )


def clean(
    connection: "DuckDBPyConnection",
    *,
    older_than: timedelta | None,
    accessed_fewer_than: int | None,
    larger_than: int | None,
    kind: str | None,
    to_bytes: int | None,
    dry_run: bool,
) -> CleanResult:
    """Remove embeddings that meet all conditions, with the answers cached about them; oldest first until `to_bytes`."""
    conditions: dict[str, Any] = {}
    if older_than is not None:
        conditions["created < ?"] = moment_before(older_than)
    if accessed_fewer_than is not None:
        conditions["num_accesses < ?"] = accessed_fewer_than
    if larger_than is not None:
        conditions["stored_bytes > ?"] = larger_than
    if kind is not None:
        conditions["kind = ?"] = kind
    entries = select_entries(connection, conditions, oldest_first=True)
    if to_bytes is not None:
        entries = _oldest_beyond(entries, _stored_bytes(connection) - to_bytes)
    if entries and not dry_run:
        _delete(connection, [entry.id for entry in entries])
    return CleanResult(entries, dry_run)


def rewrite(path: Path, deadline: float, track: Track) -> FileSizes:
    """Copy what is stored into a new file and put it in place; DuckDB gives no space back otherwise.

    Raises:
        FileError: the disk has no room for the copy.
    """
    before = path.stat().st_size
    with connect(path, read_only=False, deadline=deadline) as connection:
        connection.execute("CHECKPOINT")
        batches = _batches(connection)
        needed = _stored_bytes(connection)
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise FileError(f"{path} needs {needed} bytes for its copy and {free} are free there; make room first")
    unfinished = unfinished_copy(path)
    try:
        make_tables(unfinished)
        _copy(path, unfinished, batches, track)
        put_in_place(unfinished, path)
    finally:
        discard(unfinished)
    return FileSizes(before, path.stat().st_size)


def unfinished_copy(path: Path) -> Path:
    """Where `rewrite` makes its copy."""
    return Path(f"{path}.vacuum")


def export(connection: "DuckDBPyConnection", folder: Path, tokens: bool) -> None:
    """One Parquet file per table; the tokens of `embeddings` are decompressed, or left out.

    Raises:
        CorruptFileError: tokens that are damaged.
    """
    connection.create_function("plain_tokens", _plain_tokens, ["BLOB", "BIGINT", "VARCHAR"], "BLOB")
    connection.create_function("plain_vector", _plain_vector, ["BLOB"], "FLOAT[]")
    chosen = (
        "* REPLACE (plain_vector(mean_vector) AS mean_vector, plain_tokens(tokens, num_tokens * dim, dtype) AS tokens)"
    )
    without = "* EXCLUDE (tokens) REPLACE (plain_vector(mean_vector) AS mean_vector)"
    with replace_folder(folder) as unfinished:
        for table in TABLES:
            columns = "*" if table != "embeddings" else chosen if tokens else without
            options = f"FORMAT parquet, COMPRESSION zstd, KV_METADATA {{tokens: '{TOKENS_ARE}'}}"
            if table == "embeddings":
                options += f", ROW_GROUP_SIZE {ROWS_PER_GROUP}"
            file = _quoted(unfinished / f"{table}.parquet")
            try:
                connection.execute(f"COPY (SELECT {columns} FROM {table}) TO {file} ({options})")
            except duckdb.InvalidInputException as error:
                raise CorruptFileError(f"cannot export: {str(error).strip().splitlines()[-1]}") from error


def require_export_folder(folder: Path) -> None:
    """Return if an export may replace `folder`: it is not there, empty, or an earlier export.

    Raises:
        FileError: it holds something else, or cannot be written to.
    """
    if folder.is_file():
        raise FileError(f"{folder} is a file; give a folder for the Parquet files")
    own = {f"{table}.parquet" for table in TABLES}
    others = [entry.name for entry in folder.iterdir() if entry.name not in own] if folder.is_dir() else []
    if others:
        raise FileError(f"{folder} holds other files ({others[0]}); give a new folder, it is replaced as a whole")
    require_writable(folder.absolute().with_name("embeddings.parquet"))


def _oldest_beyond(entries: list[EmbeddingEntry], excess: int) -> list[EmbeddingEntry]:
    """The first entries that together free `excess` bytes; all of them where they cannot."""
    chosen = []
    for entry in entries:
        if excess <= 0:
            break
        chosen.append(entry)
        excess -= entry.stored_bytes
    return chosen


def _delete(connection: "DuckDBPyConnection", ids: list[str]) -> None:
    connection.begin()
    connection.execute("CREATE TEMP TABLE removed AS SELECT unnest(?::VARCHAR[]) AS id", [ids])
    connection.execute("DELETE FROM embeddings WHERE id IN (SELECT id FROM removed)")
    connection.execute("DELETE FROM embedding_analysis WHERE embedding_id IN (SELECT id FROM removed)")
    connection.execute(
        "DELETE FROM embedding_similarities "
        "WHERE embedding_id IN (SELECT id FROM removed) OR other_id IN (SELECT id FROM removed)"
    )
    connection.commit()


def _stored_bytes(connection: "DuckDBPyConnection") -> int:
    row = connection.execute("SELECT coalesce(sum(stored_bytes), 0) FROM embeddings").fetchone()
    assert row is not None
    return int(row[0])


def _batches(connection: "DuckDBPyConnection") -> list[tuple[int, int]]:
    """First and last row number of parts of at most `BATCH_BYTES`, or of one row."""
    batches: list[tuple[int, int]] = []
    filled = 0
    for row, size in connection.execute("SELECT rowid, stored_bytes FROM embeddings ORDER BY rowid").fetchall():
        if batches and filled + size <= BATCH_BYTES:
            batches[-1] = (batches[-1][0], row)
            filled += size
        else:
            batches.append((row, row))
            filled = size
    return batches


def _copy(path: Path, target: Path, batches: list[tuple[int, int]], track: Track) -> None:
    with duckdb.connect(":memory:", config=SETTINGS) as connection:
        connection.execute(f"ATTACH {_quoted(path)} AS old (READ_ONLY)")
        connection.execute(f"ATTACH {_quoted(target)} AS new")
        for first, last in track(batches, "copying"):
            connection.execute(
                "INSERT INTO new.embeddings SELECT * FROM old.embeddings WHERE rowid BETWEEN ? AND ?", [first, last]
            )
        for table in TABLES:
            if table != "embeddings":
                connection.execute(f"INSERT INTO new.{table} SELECT * FROM old.{table}")
            counts = connection.execute(
                f"SELECT (SELECT count(*) FROM old.{table}), (SELECT count(*) FROM new.{table})"
            ).fetchone()
            if counts is None or counts[0] != counts[1]:
                raise CorruptFileError(f"{path}: table {table} could not be copied whole; nothing was changed")
        connection.execute("DETACH new")
        connection.execute("DETACH old")


def _plain_tokens(blob: bytes, num_numbers: int, dtype: str) -> bytes:
    return decompress(blob, num_numbers * ITEM_BYTES[dtype], ITEM_BYTES[dtype]).tobytes()


def _plain_vector(blob: bytes) -> list[float]:
    return np.frombuffer(blob, np.float32).tolist()


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"
