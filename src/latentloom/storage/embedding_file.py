"""Where the embedding store lies, and being alone with it for as long as one call needs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentloom.errors import ConfigError, FileError
from latentloom.storage.atomic import require_writable
from latentloom.storage.embedding_schema import connect, create, discard
from latentloom.storage.embedding_upkeep import unfinished_copy
from latentloom.storage.store_lock import StoreLock

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PATH_VARIABLE = "LATENTLOOM_STORE"


class EmbeddingFile:
    """The database file of a store, opened anew by each call.

    Args:
        path: the file; None takes `default_path()`.
        timeout: seconds to wait for whoever has it.

    Raises:
        ConfigError: a timeout that is negative or not finite.
    """

    def __init__(self, path: Path | str | None, timeout: float) -> None:
        if not 0 <= timeout <= 1e6:
            raise ConfigError(f"timeout={timeout}; give the seconds to wait, from 0 to 1000000")
        self.path = (
            default_path() if path is None else Path(path).expanduser()
        ).resolve()  # links to one file share its lock
        self.timeout = timeout

    @contextmanager
    def alone(self) -> Iterator[float]:
        """Nobody else has the file inside; gives the moment until which to wait for programs that know no lock.

        Raises:
            FileError: it does not exist, or others had it all the time.
        """
        if not self.path.is_file():
            what = "is a folder" if self.path.is_dir() else "does not exist"
            raise FileError(f"{self.path} {what}; `latentloom store put` makes a store, --db names one")
        with StoreLock(self.path, self.timeout).hold() as deadline:
            yield deadline

    @contextmanager
    def reading(self) -> "Iterator[DuckDBPyConnection]":
        """A connection that changes nothing.

        Raises:
            FileError: it does not exist, is no store, or others had it all the time.
        """
        with self.alone() as deadline, connect(self.path, read_only=True, deadline=deadline) as connection:
            yield connection

    @contextmanager
    def changing(self) -> "Iterator[DuckDBPyConnection]":
        """A connection to an existing store that can write.

        Raises:
            FileError: as `reading`.
        """
        with self.alone() as deadline:
            discard(unfinished_copy(self.path))  # of a vacuum that was killed
            with connect(self.path, read_only=False, deadline=deadline) as connection:
                yield connection

    @contextmanager
    def adding(self) -> "Iterator[DuckDBPyConnection]":
        """A connection that can write; the store is made where there is none.

        Raises:
            FileError: it cannot be made, is no store, or others had it all the time.
        """
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make {folder}: {error.strerror}; give a folder that can be written to") from error
        if not self.path.exists():
            require_writable(self.path)
        with StoreLock(self.path, self.timeout).hold() as deadline:
            discard(unfinished_copy(self.path))
            if not self.path.exists():  # nobody made it meanwhile
                create(self.path)
            with connect(self.path, read_only=False, deadline=deadline) as connection:
                yield connection


def default_path() -> Path:
    """Where the store lies unless something else is said: $LATENTLOOM_STORE, or below the user's data folder."""
    named = os.environ.get(PATH_VARIABLE)
    if named:
        return Path(named).expanduser()
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "latentloom" / "embeddings.duckdb"
