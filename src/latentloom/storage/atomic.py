"""Files that appear whole or not at all."""

import errno
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from latentloom.errors import FileError

_DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` on success, removed on failure.

    Missing parent folders are made. The temporary name keeps the suffix, for writers that choose a format by it.

    Raises:
        FileError: the place cannot be written to, or `path` is something other than a file.
    """
    path = Path(path)
    _refuse_other_kinds(path)
    temporary = path.with_name(f".{secrets.token_hex(6)}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; give a folder that can be written to") from error
    try:
        with disk_failures_said(path):
            yield temporary
            temporary.chmod(mode)  # a writer may have put its own file in the place of ours, readable by nobody else
            _flush_to_disk(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path | str) -> Iterator[Path]:
    """A new folder beside `path` that takes its place on success and is removed on failure.

    What stood at `path` is deleted only when the new folder is in its place.

    Raises:
        FileError: the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    replaced = temporary.with_suffix(".replaced")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; give a folder that can be written to") from error
    try:
        with disk_failures_said(path):
            yield temporary
            if path.exists():
                path.rename(replaced)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if replaced.exists() and not path.exists():
            replaced.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def disk_failures_said(path: Path | str) -> Iterator[None]:
    """Turns a disk that is full, failing or read-only, as any library reports it, into the one line that says so.

    Raises:
        FileError: the disk failed while `path` was written.
    """
    try:
        yield
    except Exception as error:
        reason = _disk_failure(error)
        if reason is None:
            raise
        raise FileError(f"cannot write {path}: {reason}; free some space or give another folder") from error


def require_writable(path: Path | str) -> None:
    """Return if a file could be written at `path`; hours of work should not end with finding that it cannot.

    Raises:
        FileError: the place cannot be written to, or `path` is something other than a file.
    """
    path = Path(path)
    _refuse_other_kinds(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; give a folder that can be written to") from error


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON; numbers that JSON does not know (NaN, infinities) become null."""
    write_text(path, json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _disk_failure(error: Exception) -> str | None:
    """What is wrong with the disk, in the system's words; None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and type(error).__name__ == "SafetensorError":  # its type is not worth an import here
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else None
    return os.strerror(number) if number in _DISK_FAILURES else None


def _refuse_other_kinds(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FileError(f"{path} exists and is not a file; give another name to write to")


def _flush_to_disk(path: Path) -> None:
    # without it a power cut right after the rename can leave an empty file under the good name
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _without_nan(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
