"""A folder per run: settings, record, checkpoints, curves."""

import logging
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from latentloom.errors import ConfigError, FileError
from latentloom.runs import environment
from latentloom.runs.config import Config, to_toml
from latentloom.runs.experiment import Trainings, complete_trainings
from latentloom.runs.record import RECORD_NAME, Decision, RunRecord
from latentloom.storage import write_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")


class RunFolder:
    """A run on disk. As a context manager it notes in the record when the run fails or is interrupted.

        with RunFolder.create(Path("runs"), "train", config, seeds=[0], data="world, 4000 clips") as run:
            ...
            run.count(batch_size, "clips")
            run.finish({"accuracy": 0.97}, decision="keep")

    Args:
        path: the folder, which exists.
        record: its complete header.
    """

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path = path
        self.record = record
        self._started = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._stated: dict[str, float] = {}
        self._writer: SummaryWriter | None = None

    @classmethod
    def create(
        cls,
        root: Path | str,
        name: str,
        config: Config | Mapping[str, Any],
        *,
        command: str | None = None,
        seeds: int | Sequence[int] | None = None,
        data: str | Path | None = None,
        trainings: Trainings | None = None,
    ) -> "RunFolder":
        """Make `root/<date>-<time>-<name>` with config.toml and record.json; no two runs ever share one.

        Args:
            root: the folder of all runs.
            name: what is run: letters, digits, dots, dashes and underscores.
            config: the settings, written as TOML.
            command: the command line; this process's own when None.
            seeds: what randomness starts from; the setting `seed` or `seeds` when None.
            data: which data, in words; the setting `data` when None.
            trainings: the facts of each thing that is trained, by name; None for a run that trains nothing.

        Raises:
            ConfigError: a name with other characters, or a header that is not complete: the run must not start.
            FileError: `root` cannot be written to.
        """
        if not SAFE_NAME.fullmatch(name):
            raise ConfigError(
                f"run name {name!r}; begin with a letter or digit, use letters, digits, '.', '-', '_', at most 80"
            )
        now = datetime.now().astimezone()
        record = _new_record(f"{now:%Y%m%d-%H%M%S}-{name}", now, config, command, seeds, data, trainings)
        path = _new_folder(Path(root), record.id)
        return cls._begin(path, record.model_copy(update={"id": path.name}), config)

    @classmethod
    def at(
        cls,
        path: Path | str,
        config: Config | Mapping[str, Any],
        *,
        command: str | None = None,
        seeds: int | Sequence[int] | None = None,
        data: str | Path | None = None,
        trainings: Trainings | None = None,
    ) -> "RunFolder":
        """Run in a folder that the user named, whose name is the run's id; an earlier run's record is replaced.

        Args:
            path: the folder, made where it does not exist.
            config, command, seeds, data, trainings: as in `create`.

        Raises:
            ConfigError: a header that is not complete: the run must not start.
            FileError: the folder cannot be written to.
        """
        path = Path(path)
        now = datetime.now().astimezone()
        record = _new_record(path.resolve().name, now, config, command, seeds, data, trainings)
        kept = _decisions_at(path)
        return cls._begin(path, record.model_copy(update={"earlier_decisions": kept}), config)

    @classmethod
    def _begin(cls, path: Path, record: RunRecord, config: Config | Mapping[str, Any]) -> "RunFolder":
        write_text(path / "config.toml", to_toml(config))
        record.write(path)
        return cls(path, record)

    @property
    def checkpoints(self) -> Path:
        """The folder of this run's checkpoints, made when first asked for."""
        folder = self.path / "checkpoints"
        folder.mkdir(exist_ok=True)
        return folder

    def tensorboard(self) -> "SummaryWriter":
        """The writer of this run's curves, opened when first asked for."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, and not every run draws curves

            self._writer = SummaryWriter(str(self.path / "tensorboard"))
        return self._writer

    def count(self, num_items: int, unit: str = "samples") -> None:
        """Add items to this run's throughput, which the record states in units per second."""
        self._counts[unit] += num_items

    def state_throughput(self, per_second: float, unit: str) -> None:
        """State a throughput that the work itself measured, in place of what was counted of this unit."""
        self._stated[unit] = per_second

    def finish(self, results: Mapping[str, Any], decision: str | None = None) -> RunRecord:
        """Close the run and complete its record.

        Args:
            results: what it came to, JSON values or numbers of numpy and torch.
            decision: what follows from it, in words.
        """
        return self._close("finished", dict(results), decision)

    def interrupt(self, results: Mapping[str, Any]) -> RunRecord:
        """Close a run that was asked to stop before its end and may go on later."""
        return self._close("interrupted", dict(results), None)

    def _close(
        self, status: Literal["finished", "failed", "interrupted"], results: dict[str, Any], decision: str | None
    ) -> RunRecord:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        seconds = time.monotonic() - self._started
        counted = {unit: number / max(seconds, 1e-9) for unit, number in self._counts.items()}
        closing = {
            "status": status,
            "seconds": round(seconds, 3),
            "peak_memory_mb": round(environment.peak_memory_mb(), 1),
            "peak_device_memory_mb": environment.peak_device_memory_mb(),
            "throughput": counted | self._stated,
            "results": results,
            "artifacts": _artifacts(self.path),
            "decision": decision,
        }
        self.record = self.record.model_copy(update=closing)
        self.record.write(self.path)
        return self.record

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.record.status != "running":
            return
        if kind is None:
            self.finish({})
        else:
            status = "interrupted" if issubclass(kind, KeyboardInterrupt) else "failed"
            self._close(status, {"error": f"{kind.__name__}: {error}"}, None)


def _new_record(
    run_id: str,
    date: datetime,
    config: Config | Mapping[str, Any],
    command: str | None,
    seeds: int | Sequence[int] | None,
    data: str | Path | None,
    trainings: Trainings | None,
) -> RunRecord:
    settings = config.model_dump() if isinstance(config, Config) else config
    seeds = seeds if seeds is not None else settings.get("seeds", settings.get("seed"))
    data = data if data is not None else settings.get("data")
    branch, commit = environment.git_state()
    header = {
        "date": date,
        "id": run_id,
        "git_branch": branch,
        "git_commit": commit,
        "command": command if command is not None else shlex.join(sys.argv),
        "data": str(data) if isinstance(data, str | Path) else data,
        "seeds": [seeds] if isinstance(seeds, int) else seeds,
        "device": environment.device_description(),
        "versions": environment.package_versions(),
    }
    return _checked(header, trainings)


def _checked(header: dict[str, Any], trainings: Trainings | None) -> RunRecord:
    complete = {} if trainings is None else complete_trainings(trainings)
    try:
        return RunRecord.model_validate({**header, "trainings": complete})
    except ValidationError as error:
        missing = ", ".join(dict.fromkeys(str(problem["loc"][0]) for problem in error.errors()))
        raise ConfigError(
            f"the run's record lacks {missing}; state seeds=[...] and data='which data', or give them as settings"
        ) from error


def _decisions_at(path: Path) -> list[Decision | str]:
    """What people decided about the run that this folder held before; its own words are said anew."""
    if not (path / RECORD_NAME).is_file():
        return []
    try:
        before = RunRecord.read(path)
    except FileError as error:  # it is about to be replaced, and nothing can be taken from it
        logger.warning("no decisions are taken over: %s", error)
        return []
    latest = [before.decision] if isinstance(before.decision, Decision) else []
    return [*before.earlier_decisions, *latest]


def _artifacts(folder: Path) -> list[str]:
    """Curves, pages and measures at the top of a run's folder."""
    if not folder.is_dir():
        return []
    suffixes = {".html", ".json", ".jsonl"}
    files = [path.name for path in folder.iterdir() if path.suffix in suffixes and path.name != RECORD_NAME]
    return sorted(files + [name for name in ("tensorboard",) if (folder / name).is_dir()])


def _new_folder(root: Path, run_id: str) -> Path:
    number = 1
    while True:
        path = root / (run_id if number == 1 else f"{run_id}-{number}")
        try:
            root.mkdir(parents=True, exist_ok=True)
            path.mkdir()  # fails when another run took the name, in whichever process
        except FileExistsError as error:
            if not root.is_dir():
                raise FileError(f"{root} is not a folder; give a folder for the runs") from error
            number += 1
        except OSError as error:
            raise FileError(f"cannot make {path}: {error.strerror}; give a folder that can be written to") from error
        else:
            return path
