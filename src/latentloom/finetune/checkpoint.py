"""`global_stepN/`: everything a run needs to go on, written by all stages, there whole or not at all.

Weights and the optimizer's state lie under the parameters' names, so a run can go on with another number of stages.
Random numbers need no place here: each is a function of the seed and the step.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import distributed, nn
from torch.optim import Optimizer

from latentloom.errors import CheckpointError, ConfigError, CorruptFileError
from latentloom.runs import RunRecord, is_distributed, process_rank
from latentloom.storage import atomic_write, read_header, write_json
from latentloom.training.optimizer_state import load_optimizer_state, optimizer_state

STATE_FILE = "state.json"
_NAME = re.compile(r"global_step(\d+)")
_REMAINS = re.compile(r"\.(partial|replaced|gathered)\b")


@dataclass(frozen=True)
class Position:
    """Where a run is: `step` steps are done, of which the last belonged to `epoch`, counted from 1."""

    step: int
    epoch: int


@dataclass(frozen=True)
class Resume:
    """A run to go on with.

    Attributes:
        run: its folder.
        checkpoint: from where; None is from the start.
        position: of the checkpoint.
        notes: what a person should know about the choice.
    """

    run: Path
    checkpoint: Path | None
    position: Position
    notes: tuple[str, ...] = ()


def barrier() -> None:
    """Wait for the other processes, if there are any."""
    if is_distributed():
        distributed.barrier()


def save_checkpoint(
    run: Path,
    position: Position,
    stage: int,
    is_writer: bool,
    trained: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    facts: Mapping[str, Any],
    kept: int,
) -> Path:
    """Write `global_stepN` from all processes together.

    Older ones beyond `kept` are deleted, and those of later steps, which a run has that went on from an earlier one.

    Args:
        run: the run's folder.
        position: where the run is.
        stage: of this process.
        is_writer: of the replicas of a stage, one writes.
        trained: this stage's parameters by name.
        optimizer: theirs.
        facts: what a resuming run must agree with.
        kept: checkpoints to keep, this one included.
    """
    target = run / f"global_step{position.step}"
    partial = run / f".global_step{position.step}.partial"
    if process_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    barrier()
    if is_writer:
        tensors = {f"weight/{name}": weight.detach() for name, weight in trained.items()}
        state = optimizer_state(optimizer, trained)
        tensors |= {f"optimizer/{name}": value for name, value in state.items()}
        with atomic_write(partial / f"stage_{stage}.safetensors") as temporary:
            save_file({name: value.cpu().contiguous().clone() for name, value in tensors.items()}, temporary)
    barrier()
    if process_rank() == 0:
        files = {path.name: path.stat().st_size for path in sorted(partial.glob("stage_*.safetensors"))}
        write_json(partial / STATE_FILE, {"step": position.step, "epoch": position.epoch, "files": files, **facts})
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        before, later = [], []
        for path in checkpoints_in(run):
            (before if _step_of(path) <= position.step else later).append(path)
        for old in (*before[:-kept], *later):
            shutil.rmtree(old)
    barrier()
    return target


def checkpoints_in(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [path for path in run.glob("global_step*") if _NAME.fullmatch(path.name)]
    return [path for path in sorted(found, key=_step_of) if (path / STATE_FILE).is_file()]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("global_step"))


def find_resume(
    output_dir: Path, name: str | None, kind: str, facts: Mapping[str, Any], after: str = ""
) -> Resume | None:
    """The run to go on with and from where; None where there is no run.

    Of a run's checkpoints the newest that can be read is taken, and a note tells of those that cannot.

    Args:
        output_dir: the folder of all runs.
        name: a run's folder, or `RUN/global_stepN`; None is the newest run.
        kind: what runs of this kind are called after their date and time.
        facts: what a checkpoint must agree with.
        after: only runs that began later than this one are looked for.

    Raises:
        ConfigError: a name that is not there, or a checkpoint that was made with other settings.
        CorruptFileError: a checkpoint that was named, or all of a run, cannot be read.
    """
    pattern = re.compile(rf"\d{{8}}-\d{{6}}-{re.escape(kind)}(-\d+)?")
    runs = [path.parent for path in sorted(output_dir.glob("*/record.json")) if pattern.fullmatch(path.parent.name)]
    if name is None:
        runs = [run for run in runs if run.name > after]
        return _newest(runs[-1], facts) if runs else None
    chosen = output_dir / name
    if _NAME.fullmatch(chosen.name):
        if not (chosen / STATE_FILE).is_file():
            raise ConfigError(f"no checkpoint {name!r} in {output_dir}; give RUN/global_stepN, or a run's name")
        return Resume(chosen.parent, chosen, read_position(chosen, facts))
    if chosen not in runs:
        known = ", ".join(path.name for path in runs[-3:]) or "none"
        raise ConfigError(f"no run {name!r} in {output_dir}; the latest are {known}")
    return _newest(chosen, facts)


def _newest(run: Path, facts: Mapping[str, Any]) -> Resume:
    """The last checkpoint of a run that can be read; a run that was killed early has none and starts again."""
    problems: list[str] = []
    for checkpoint in reversed(checkpoints_in(run)):
        try:
            position = read_position(checkpoint, facts)
        except CorruptFileError as problem:
            problems.append(str(problem))
        else:
            notes = [f"{problem}; going on from {checkpoint.name}" for problem in problems]
            return Resume(run, checkpoint, position, tuple(notes))
    if problems:
        raise CorruptFileError(f"no checkpoint of {run} can be read ({problems[0]}); start a new run")
    return Resume(run, None, Position(0, 0))


def read_position(checkpoint: Path, facts: Mapping[str, Any]) -> Position:
    """Where a checkpoint's run was.

    Raises:
        ConfigError: it was made with other settings than these.
        CorruptFileError: it cannot be read, or one of its files is cut short or missing.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        position = Position(int(state["step"]), int(state["epoch"]))
        files = {str(name): int(size) for name, size in state["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{checkpoint} is damaged: {STATE_FILE} cannot be read") from error
    for name, size in files.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            raise CorruptFileError(f"{checkpoint} is damaged: {name} is cut short or missing")
        try:
            read_header(path)
        except CorruptFileError as error:
            raise CorruptFileError(f"{checkpoint} is damaged: {name} cannot be read") from error
    for key, value in facts.items():
        if state.get(key) != value:
            raise ConfigError(
                f"{checkpoint} was made with {key} = {state.get(key)!r} and the settings say {value!r}; resume with "
                "the same settings, or start a new run"
            )
    return position


def is_finished(run: Path) -> bool:
    """Whether a run's record says that it came to its end; one that was killed says that it is running."""
    return RunRecord.read(run).status == "finished"


def clear_remains(run: Path) -> None:
    """Remove what a killed process was writing into a run's folder."""
    for path in run.glob(".*"):
        if _REMAINS.search(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@torch.no_grad()
def load_checkpoint(checkpoint: Path, trained: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Fill a stage's weights and optimizer, whichever stages wrote them.

    Raises:
        CheckpointError: a parameter is not in the checkpoint, or has another shape there.
    """
    weights: dict[str, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("stage_*.safetensors")):
        header = read_header(file)
        with safe_open(file, framework="pt") as stored:
            for key in header.keys() - {"__metadata__"}:
                kind, name = key.split("/", 1)
                if kind == "weight" and name in trained:
                    weights[name] = stored.get_tensor(key)
                elif kind == "optimizer" and name.rpartition("/")[0] in trained:
                    state[name] = stored.get_tensor(key)
    for name, weight in trained.items():
        if name not in weights or weights[name].shape != weight.shape:
            raise CheckpointError(f"{checkpoint} does not hold {name} in this run's shape {list(weight.shape)}")
        weight.copy_(weights[name])
    load_optimizer_state(optimizer, trained, state)
