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
from latentloom.runs import is_distributed, process_rank
from latentloom.storage import atomic_write, read_header, write_json
from latentloom.training.optimizer_state import load_optimizer_state, optimizer_state

STATE_FILE = "state.json"
_NAME = re.compile(r"global_step(\d+)")


@dataclass(frozen=True)
class Position:
    """Where a run is: `step` steps are done, of which the last belonged to `epoch`, counted from 1."""

    step: int
    epoch: int


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
    """Write `global_stepN` from all processes together; older ones beyond `kept` are deleted.

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
        for left in run.glob(".global_step*.partial"):
            shutil.rmtree(left)
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
        write_json(partial / STATE_FILE, {"step": position.step, "epoch": position.epoch, **facts})
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        for old in checkpoints_in(run)[:-kept]:
            shutil.rmtree(old)
    barrier()
    return target


def checkpoints_in(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in run.glob("global_step*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if (path / STATE_FILE).is_file()]


def find_resume(output_dir: Path, name: str | None, kind: str) -> tuple[Path, Path | None] | None:
    """The run to go on with and its last checkpoint, which a run that was killed early may not have.

    Args:
        output_dir: the folder of all runs.
        name: a run's folder, or `RUN/global_stepN`; None is the newest run.
        kind: what the names of runs of this kind end with.

    Raises:
        ConfigError: a name that is not there.
    """
    runs = sorted(path.parent for path in output_dir.glob(f"*-{kind}*/record.json"))
    if name is None:
        if not runs:
            return None
        run = runs[-1]
    else:
        run = output_dir / name
        if _NAME.fullmatch(run.name):
            if not (run / STATE_FILE).is_file():
                raise ConfigError(f"no checkpoint {name!r} in {output_dir}; give RUN/global_stepN, or a run's name")
            return run.parent, run
        if run not in runs:
            known = ", ".join(path.name for path in runs[-3:]) or "none"
            raise ConfigError(f"no run {name!r} in {output_dir}; the latest are {known}")
    found = checkpoints_in(run)
    return run, found[-1] if found else None


def read_position(checkpoint: Path, facts: Mapping[str, Any]) -> Position:
    """Where a checkpoint's run was.

    Raises:
        ConfigError: it was made with other settings than these.
        CorruptFileError: it cannot be read.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        position = Position(int(state["step"]), int(state["epoch"]))
    except (OSError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{checkpoint} cannot be read ({error}); name an earlier checkpoint") from error
    for key, value in facts.items():
        if state.get(key) != value:
            raise ConfigError(
                f"{checkpoint} was made with {key} = {state.get(key)!r} and the settings say {value!r}; resume with "
                "the same settings, or start a new run"
            )
    return position


@torch.no_grad()
def load_checkpoint(checkpoint: Path, trained: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    """Fill a stage's weights and optimizer, whichever stages wrote them.

    Raises:
        CheckpointError: a parameter is not in the checkpoint, or has another shape there.
    """
    weights: dict[str, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    for file in sorted(checkpoint.glob("stage_*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for key in read_header(file).keys() - {"__metadata__"}:
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
