"""What MicroWan's training stages share: one optimizer step over all processes, randomness by step, and the curve."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentloom.runs import all_reduce_mean_
from latentloom.storage import write_text


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """The random source of one step in one process: a resumed run draws what the uninterrupted one draws."""
    return torch.Generator().manual_seed(((seed << 20) + step) * 64 + rank)


def take_step(loss: Tensor, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], clip: float = 1.0) -> None:
    """One optimizer step on the mean gradient of all processes, its norm limited to `clip`."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trained = [item for module in modules for item in module.parameters() if item.grad is not None]
    all_reduce_mean_([item.grad for item in trained if item.grad is not None])
    nn.utils.clip_grad_norm_(trained, clip)
    for optimizer in optimizers:
        optimizer.step()


class Curve:
    """Measures by step, one JSON line each; a resumed run drops the lines past its first step. One process writes it.

    Args:
        path: the file, made when the first line is written.
        first_step: the step the run starts or continues at.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self.path = path
        self.kept = [line for line in read_curve(path) if line["step"] < first_step] if path.exists() else []
        self.seconds = self.kept[-1]["seconds"] if self.kept else 0.0
        self.started = time.monotonic()
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.kept))

    def append(self, step: int, **measures: float) -> None:
        """Add one line; `seconds` counts the time spent on this stage over all its sittings."""
        line = {"step": step, "seconds": round(self.seconds + time.monotonic() - self.started, 2)}
        line |= {name: round(value, 6) for name, value in measures.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_curve(path: Path) -> list[dict[str, float]]:
    """The lines of a curve, in order; a last line that a killed run left half written does not count."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
