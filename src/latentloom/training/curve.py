"""Measures by step in a file that an interrupted run can go on with."""

import json
import time
from pathlib import Path

from latentloom.storage import write_text


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
        line |= measures
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_curve(path: Path) -> list[dict[str, float]]:
    """The lines of a curve, in order; a last line that a killed run left half written does not count."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
