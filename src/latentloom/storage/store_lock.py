"""One at a time at a file: threads of this process and other processes wait for each other, and for how long."""

import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from latentloom.errors import FileError

POLL_SECONDS = 0.005
COMMAND_LETTERS = 120

# by process as well: a forked child must not wait for a thread that only its parent has
_thread_locks: dict[tuple[int, str], threading.Lock] = {}


class StoreLock:
    """The right to open a file, held by one thread of one process.

    Between processes the operating system's lock on `<file>.lock` decides; it ends with its process, however that
    ends. Who waits for it holds `<file>.lock.next`, so that a process that comes back again and again cannot keep
    another one out. `<file>.holder.json` says who holds it, for the others' error message.

    A process may fork while none of its threads is inside; a child forked inside would keep the lock until it ends.

    Args:
        path: the file.
        timeout: seconds to wait before giving up.
    """

    def __init__(self, path: Path, timeout: float) -> None:
        self.path = path
        self.timeout = timeout

    @contextmanager
    def hold(self) -> Iterator[float]:
        """Be alone with the file inside; gives the moment (of `time.monotonic`) until which the caller may wait on.

        Raises:
            FileError: somebody else held it all the time (the message says who), or no lock can be had there.
        """
        deadline = time.monotonic() + self.timeout
        threads = _thread_lock(self.path)
        if not threads.acquire(timeout=self.timeout):
            raise self._busy()
        try:
            turn, alone = self._file_lock(".lock.next"), self._file_lock(".lock")
            try:
                turn.acquire(timeout=max(0.0, deadline - time.monotonic()))
                try:
                    alone.acquire(timeout=max(0.0, deadline - time.monotonic()))
                finally:
                    turn.release()
            except Timeout as error:
                raise self._busy() from error
            except (OSError, NotImplementedError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise FileError(f"cannot lock {self.path}: {reason}; give a folder that can be written to") from error
            try:
                self._sign()
                yield deadline
            finally:
                self._side("holder.json").unlink(missing_ok=True)
                alone.release()
        finally:
            threads.release()

    def _file_lock(self, suffix: str) -> FileLock:
        # the fallback is a lock that outlives a killed process
        return FileLock(f"{self.path}{suffix}", poll_interval=POLL_SECONDS, fallback_to_soft=False)

    def _sign(self) -> None:
        holder = {
            "pid": os.getpid(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:COMMAND_LETTERS],
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._side("holder.json").write_text(json.dumps(holder), encoding="utf-8")

    def _busy(self) -> FileError:
        return FileError(
            f"{self.path} is in use by {self._holder()}; waited {self.timeout:g} s; let it finish, or wait longer"
        )

    def _holder(self) -> str:
        try:
            holder = json.loads(self._side("holder.json").read_text(encoding="utf-8"))
            return f"process {holder['pid']} ({holder['command']}) since {holder['since']}"
        except (OSError, ValueError, KeyError, TypeError):  # between two holders there is none
            return "another process"

    def _side(self, name: str) -> Path:
        return Path(f"{self.path}.{name}")


def _thread_lock(path: Path) -> threading.Lock:
    return _thread_locks.setdefault((os.getpid(), str(path.resolve())), threading.Lock())  # one atomic step
