"""What is known about a run, as record.json in its folder."""

import logging
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from latentloom.errors import CorruptFileError, FileError
from latentloom.storage import write_text

RECORD_NAME = "record.json"
Stated = Annotated[str, Field(min_length=1, pattern=r"\S")]

logger = logging.getLogger(__name__)


class RunRecord(BaseModel):
    """One run: a header that must be complete before the run starts, and what it came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: AwareDatetime
    id: Stated
    git_branch: Stated
    git_commit: Stated
    command: Stated
    data: Stated
    seeds: list[int] = Field(min_length=1)
    device: Stated
    versions: dict[str, Stated] = Field(min_length=1)

    status: Literal["running", "finished", "failed", "interrupted"] = "running"
    seconds: float | None = None
    peak_memory_mb: float | None = None
    peak_device_memory_mb: float | None = None
    throughput: dict[str, float | None] = {}
    results: dict[str, Any] = {}
    decision: str | None = None

    def write(self, folder: Path) -> None:
        """Put the record into a run folder; numbers that JSON does not know become null."""
        write_text(folder / RECORD_NAME, self.model_dump_json(indent=2, fallback=_plain) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """The record of a run folder.

        Raises:
            FileError: the folder has no record.
            CorruptFileError: the record is damaged.
        """
        path = folder / RECORD_NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise FileError(f"{folder} is not a run folder: it has no readable {RECORD_NAME}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"]) or "the file"
            raise CorruptFileError(f"{path} is damaged: {field}: {' '.join(first['msg'].split())}") from error


def list_runs(root: Path | str) -> list[RunRecord]:
    """The records of all runs below `root`, oldest first; a damaged one is logged and left out.

    Raises:
        FileError: no such folder.
    """
    root = _existing_root(root)
    records = []
    for path in root.glob(f"*/{RECORD_NAME}"):
        try:
            records.append(RunRecord.read(path.parent))
        except FileError as error:
            logger.warning("left out: %s", error)
    return sorted(records, key=lambda record: (record.date, record.id))


def find_run(root: Path | str, run_id: str) -> RunRecord:
    """The record of the run whose id is, or alone begins with, `run_id`.

    Raises:
        FileError: no such folder, no such run (the nearest is named), or several begin so.
        CorruptFileError: its record is damaged.
    """
    root = _existing_root(root)
    ids = sorted(path.parent.name for path in root.glob(f"*/{RECORD_NAME}"))
    matches = [run_id] if run_id in ids else [known for known in ids if run_id and known.startswith(run_id)]
    if len(matches) == 1:
        return RunRecord.read(root / matches[0])
    if matches:
        raise FileError(
            f"{len(matches)} runs in {root} begin with {run_id!r}: {', '.join(matches[:5])}; give more of the id"
        )
    nearest = get_close_matches(run_id, ids, n=1, cutoff=0)
    hint = f"the nearest is {nearest[0]!r}" if nearest else "it holds no runs"
    raise FileError(f"no run {run_id!r} in {root}; {hint}")


def _existing_root(root: Path | str) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise FileError(f"{root} is not a folder; give the folder that holds the runs")
    return root


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; lists of them too; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
