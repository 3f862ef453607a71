"""The tables of the embedding store, and the database file around them: made, opened, told from others."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from latentloom.errors import ConfigError, CorruptFileError, FileError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SCHEMA_VERSION = 2
# Version -> what makes the next one of it. A new column is the last one there too.
UPGRADES = {1: "ALTER TABLE embeddings ADD COLUMN num_accesses BIGINT DEFAULT 0"}

# Six tables and no more in the main schema; the version has a schema of its own.
# Tokens are compressed before they get here, and DuckDB would try to compress them again.
# No foreign keys: DuckDB checks them against rows that the same transaction has deleted.
TABLES = {
    "embeddings": """
        id VARCHAR PRIMARY KEY, prompt VARCHAR NOT NULL, encoder VARCHAR NOT NULL, kind VARCHAR NOT NULL,
        dtype VARCHAR NOT NULL, source_dtype VARCHAR NOT NULL, num_tokens BIGINT NOT NULL, dim BIGINT NOT NULL,
        stored_bytes BIGINT NOT NULL, created TIMESTAMP NOT NULL,
        mean_vector BLOB USING COMPRESSION UNCOMPRESSED, tokens BLOB USING COMPRESSION UNCOMPRESSED,
        num_accesses BIGINT DEFAULT 0""",
    "vector_operations": """
        id BIGINT PRIMARY KEY, kind VARCHAR NOT NULL, outputs VARCHAR[] NOT NULL, seconds DOUBLE NOT NULL,
        created TIMESTAMP NOT NULL""",
    "operation_inputs": "operation_id BIGINT NOT NULL, position INTEGER NOT NULL, embedding_id VARCHAR NOT NULL",
    "operation_parameters": "operation_id BIGINT NOT NULL, name VARCHAR NOT NULL, value VARCHAR NOT NULL",
    "embedding_analysis": """
        embedding_id VARCHAR PRIMARY KEY, norm_mean DOUBLE, norm_std DOUBLE, norm_min DOUBLE, norm_max DOUBLE,
        mean DOUBLE, std DOUBLE, minimum DOUBLE, maximum DOUBLE, effective_dim DOUBLE, num_components INTEGER""",
    "embedding_similarities": """
        embedding_id VARCHAR NOT NULL, other_id VARCHAR NOT NULL, cosine DOUBLE NOT NULL, among VARCHAR,
        num_compared BIGINT NOT NULL, candidates VARCHAR NOT NULL""",
}

# What follows is measured in benchmarks/results/embedding_settings.txt.
# An embedding put by itself begins blocks of its own, so smaller ones than DuckDB's 256 KB.
BLOCK_BYTES = 64 * 2**10
# A commit goes to the file itself instead of to the log and then to the file, and rows that are there are not written
# again each time some are added.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "checkpoint_threshold": "1KB",
    "max_vacuum_tasks": 0,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
}

RETRY_SECONDS = 0.05


@contextmanager
def connect(path: Path, *, read_only: bool, deadline: float) -> "Iterator[DuckDBPyConnection]":
    """A connection to the store's database for the time inside; whatever DuckDB cannot do is one line.

    A store of an earlier version is brought to this one first, though it was only to be read.

    Args:
        path: an existing store.
        read_only: refuse to change anything.
        deadline: moment of `time.monotonic` until which to wait for another program that has the file open.

    Raises:
        FileError: it holds other tables, another version of these, or another program has it open.
        CorruptFileError: no DuckDB database, or damaged.
        ConfigError: a text inside that is not Unicode.
    """
    connection = _open(path, read_only, deadline)
    try:
        found = _version(path, connection)
        if found != SCHEMA_VERSION:
            connection.close()
            _upgrade(path, found, deadline)
            connection = _open(path, read_only, deadline)
        yield connection
    except duckdb.Error as error:
        raise _translated(path, error) from error
    finally:
        connection.close()


def create(path: Path) -> None:
    """An empty store at `path`, whole or not at all; the caller holds the lock.

    Raises:
        FileError: the place cannot be written to.
    """
    unfinished = Path(f"{path}.new")
    try:
        make_tables(unfinished)
        put_in_place(unfinished, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; give a folder that can be written to") from error
    except duckdb.Error as error:
        raise _translated(path, error) from error


def make_tables(path: Path) -> None:
    """A new database with empty tables and the version row; what a killed process left in its place goes."""
    discard(path)
    with duckdb.connect(str(path), config={**SETTINGS, "default_block_size": BLOCK_BYTES}) as connection:
        for name, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({columns})")
        connection.execute("CREATE SCHEMA latentloom")
        connection.execute("CREATE TABLE latentloom.store_version (version INTEGER, written_by VARCHAR)")
        connection.execute(
            "INSERT INTO latentloom.store_version VALUES (?, ?)",
            [SCHEMA_VERSION, f"latentloom {version('latentloom')}"],
        )


def discard(path: Path) -> None:
    """Remove a database and its log, where they are."""
    for file in (path, Path(f"{path}.wal")):
        file.unlink(missing_ok=True)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a closed database to `path`, safe against a power cut.

    Raises:
        FileError: a log of the file that is replaced is there: it would be replayed into the new one.
    """
    if Path(f"{path}.wal").exists() or Path(f"{finished}.wal").exists():
        raise FileError(f"{path}.wal holds changes that are not in the database yet; open and close it with duckdb")
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(finished, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _open(path: Path, read_only: bool, deadline: float) -> "DuckDBPyConnection":
    while True:
        try:
            return duckdb.connect(str(path), read_only=read_only, config=SETTINGS)
        except duckdb.Error as error:
            in_use = "lock on file" in str(error) or "different configuration" in str(error)
            if in_use and time.monotonic() < deadline:
                time.sleep(RETRY_SECONDS)
                continue
            if in_use:
                raise FileError(f"{path} is open in another program: {_first_line(error)}; close it there") from error
            raise CorruptFileError(
                f"{path} is no embedding store, or is damaged: {_first_line(error)}; use another file"
            ) from error


def _upgrade(path: Path, found: int, deadline: float) -> None:
    """Bring a store to the present version, in one transaction; the caller holds the lock."""
    with _open(path, False, deadline) as connection:
        connection.begin()
        for number in range(found, SCHEMA_VERSION):
            connection.execute(UPGRADES[number])
        connection.execute("UPDATE latentloom.store_version SET version = ?", [SCHEMA_VERSION])
        connection.commit()


def _version(path: Path, connection: "DuckDBPyConnection") -> int:
    found = connection.execute("SELECT schema_name, table_name FROM duckdb_tables()").fetchall()
    if ("latentloom", "store_version") not in found:
        raise FileError(f"{path} is a DuckDB database of another program; give the path of an embedding store")
    rows = connection.execute("SELECT version, written_by FROM latentloom.store_version").fetchall()
    if len(rows) != 1 or rows[0][0] not in (SCHEMA_VERSION, *UPGRADES):
        held = ", ".join(f"version {number} (by {program})" for number, program in rows) or "no version"
        raise FileError(
            f"{path} holds a store of {held}; this latentloom reads version {SCHEMA_VERSION}: use the one that wrote "
            "it, or another file"
        )
    missing = [name for name in TABLES if ("main", name) not in found]
    if missing:
        raise CorruptFileError(f"{path} is damaged: it has no table {', '.join(missing)}; use another file")
    return rows[0][0]


def _translated(path: Path, error: duckdb.Error) -> Exception:
    """A file that cannot be read or written is the user's matter; a wrong statement is a bug and stays what it is."""
    if isinstance(error, duckdb.InvalidInputException) and "cannot encode str as UTF-8" in str(error):
        return ConfigError("a text that was given for the store is not valid Unicode; mend it")
    if isinstance(error, duckdb.OperationalError | duckdb.InternalError | duckdb.FatalException):
        return CorruptFileError(f"{path} cannot be read or written: {_first_line(error)}")
    return error


def _first_line(error: duckdb.Error) -> str:
    return str(error).strip().splitlines()[0][:300]
