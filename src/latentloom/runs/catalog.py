"""The runs that lie below a folder, by their places there."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from latentloom.errors import FileError
from latentloom.runs.record import RECORD_NAME, RunRecord

#: Folders of a run that hold no runs, and may hold many files.
_NO_RUNS = {"checkpoints", "tensorboard", "__pycache__"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredRun:
    """A run on disk.

    Attributes:
        name: its path from the folder that was searched, which is its id for a run right in there.
        path: its folder.
        record: as its file says.
    """

    name: str
    path: Path
    record: RunRecord


def stored_runs(root: Path | str) -> list[StoredRun]:
    """All runs at and below `root`, oldest first; a damaged one is logged and left out.

    Raises:
        FileError: no such folder.
    """
    root = _existing_root(root)
    runs = []
    for path in run_folders(root):
        try:
            runs.append(_stored(root, path))
        except FileError as error:
            logger.warning("left out: %s", error)
    return sorted(runs, key=lambda run: (run.record.date, run.name))


def find_stored_run(root: Path | str, run_id: str) -> StoredRun:
    """The run that `run_id` names: a path to its folder, its name below `root`, or what one id alone begins with.

    Raises:
        FileError: no such folder, no such run (the nearest is named), or several are named so.
        CorruptFileError: its record is damaged.
    """
    if run_id and (Path(run_id) / RECORD_NAME).is_file():
        return StoredRun(run_id, Path(run_id), RunRecord.read(Path(run_id)))
    root = _existing_root(root)
    by_name = {_name(root, path): path for path in run_folders(root)}
    matches = _matches(run_id, list(by_name))
    if len(matches) == 1:
        return _stored(root, by_name[matches[0]])
    if matches:
        raise FileError(
            f"{len(matches)} runs in {root} begin with {run_id!r}: {', '.join(matches[:5])}; give more of the id, or "
            "the path of its folder"
        )
    nearest = get_close_matches(run_id, by_name, n=1, cutoff=0)
    hint = f"the nearest is {nearest[0]!r}" if nearest else "it holds no runs"
    raise FileError(f"no run {run_id!r} in {root}; {hint}")


def list_runs(root: Path | str) -> list[RunRecord]:
    """The records of all runs at and below `root`, oldest first; a damaged one is logged and left out.

    Raises:
        FileError: no such folder.
    """
    return [run.record for run in stored_runs(root)]


def find_run(root: Path | str, run_id: str) -> RunRecord:
    """The record of the run that `run_id` names, as `find_stored_run` understands it.

    Raises:
        FileError: no such folder, no such run (the nearest is named), or several are named so.
        CorruptFileError: its record is damaged.
    """
    return find_stored_run(root, run_id).record


def run_folders(root: Path) -> Iterator[Path]:
    """The folders at and below `root` that hold a record, in the order of their names."""
    seen = set()
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(name for name in inner if name not in _NO_RUNS and not name.startswith("."))
        # a link to a run counts; what else lies behind links is not searched
        linked = [Path(folder, name) for name in inner if Path(folder, name).is_symlink()]
        own = [Path(folder)] if RECORD_NAME in files else []
        for path in (*own, *(link for link in linked if (link / RECORD_NAME).is_file())):
            if path not in seen:
                seen.add(path)
                yield path


def _matches(run_id: str, names: Sequence[str]) -> list[str]:
    """The name itself, else the runs of that id, else those whose name or id begins so."""
    if run_id in names:
        return [run_id]
    of_id = [name for name in names if Path(name).name == run_id]
    if of_id or not run_id:
        return of_id
    return [name for name in names if name.startswith(run_id) or Path(name).name.startswith(run_id)]


def _stored(root: Path, path: Path) -> StoredRun:
    return StoredRun(_name(root, path), path, RunRecord.read(path))


def _name(root: Path, path: Path) -> str:
    """The path below `root`; a run that is `root` itself goes by its folder's name."""
    return path.relative_to(root).as_posix() if path != root else path.resolve().name


def _existing_root(root: Path | str) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise FileError(f"{root} is not a folder; give the folder that holds the runs")
    return root
