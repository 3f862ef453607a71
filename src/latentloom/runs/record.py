"""What is known about a run, as record.json in its folder."""

from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from latentloom.errors import CorruptFileError, FileError
from latentloom.runs.experiment import Stated, TrainingFacts
from latentloom.storage import write_text

RECORD_NAME = "record.json"


class Decision(BaseModel):
    """What somebody decided about a run after it ended, and why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choice: Literal["keep", "drop"]
    why: Stated
    date: AwareDatetime


class RunRecord(BaseModel):
    """One run: a header that must be complete before the run starts, and what it came to.

    Attributes:
        trainings: what is trained, by name; empty where nothing is.
        peak_memory_mb, peak_device_memory_mb: the most that the process held, and on the accelerator.
        throughput: items per second, by unit.
        artifacts: curves, reports and metrics that the run left in its folder.
        decision: what follows: the run's own words, until somebody decides.
        earlier_decisions: those that were replaced, oldest first.
    """

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
    trainings: dict[str, TrainingFacts] = {}

    status: Literal["running", "finished", "failed", "interrupted"] = "running"
    seconds: float | None = None
    peak_memory_mb: float | None = None
    peak_device_memory_mb: float | None = None
    throughput: dict[str, float | None] = {}
    results: dict[str, Any] = {}
    artifacts: list[str] = []
    decision: Decision | str | None = None
    earlier_decisions: list[Decision | str] = []

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


def _plain(value: Any) -> Any:
    """A number of numpy or torch as Python's; lists of them too; anything else as its text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)
