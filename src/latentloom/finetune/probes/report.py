"""What a probe found, as a folder that people read: report.md with its pictures, tables as CSV, and summary.json."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentloom.errors import FileError, LatentLoomError
from latentloom.storage import atomic_write, require_writable, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORTS = Path("reports")
_DOTS_PER_INCH = 140
_HASHED_BYTES = 2**28  # an adapter is hashed in a second; of files above this the size has to do

Columns = Sequence[str]
Rows = Sequence[Sequence[Any]]


class CapError(LatentLoomError):
    """A figure is above the cap that the user gave."""


class ProbeReport:
    """A report that is filled from top to bottom and then written.

    Args:
        tool: the probe's name, which is also the name of the folder that gathers its reports.
        title: of the page.
    """

    def __init__(self, tool: str, title: str) -> None:
        self.tool, self.title = tool, title
        self._lines = [f"# {title}"]
        self._csv: dict[str, str] = {}
        self._figures: dict[str, Figure] = {}

    def heading(self, text: str) -> None:
        """Begin a section."""
        self._lines.append(f"## {text}")

    def paragraph(self, text: str) -> None:
        """Add text, which may be Markdown."""
        self._lines.append(text)

    def table(self, columns: Columns, rows: Rows) -> None:
        """Add a table; floats show four digits, None a dash."""
        lines = [[_cell(value) for value in row] for row in (columns, *rows)]
        ruled = [lines[0], ["---"] * len(columns), *lines[1:]]
        self._lines.append("\n".join(f"| {' | '.join(line)} |" for line in ruled))

    def csv(self, name: str, columns: Columns, rows: Rows, about: str) -> None:
        """Add `name`.csv, every value in full, and a line that says what it holds."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        self._csv[f"{name}.csv"] = buffer.getvalue()
        self._lines.append(f"[{name}.csv]({name}.csv): {about}")

    def figure(self, name: str, figure: Figure, caption: str) -> None:
        """Add a picture, written as `name`.png, with what it shows."""
        self._figures[f"{name}.png"] = figure
        self._lines.append(f"![{caption}]({name}.png)\n\n*{caption}*")

    def write(
        self,
        out: Path | None,
        name: str,
        inputs: Mapping[str, Any],
        settings: Mapping[str, Any],
        results: Mapping[str, Any],
    ) -> tuple[Path, dict[str, Any]]:
        """Write all files; returns the path of report.md and what summary.json holds.

        Args:
            out: the folder; None makes `reports/<tool>/<date>-<time>-<name>`, which no two runs share.
            name: what was probed.
            inputs: what was read, see `describe_files`.
            settings: what was asked for.
            results: the figures, as JSON values.

        Raises:
            FileError: the folder cannot be written to.
        """
        folder = out if out is not None else _new_folder(REPORTS / self.tool, name)
        summary = {
            "tool": f"latentloom inspect {self.tool}",
            **_circumstances(),
            "inputs": dict(inputs),
            "settings": dict(settings),
            "results": dict(results),
        }
        for file, text in self._csv.items():
            write_text(folder / file, text)
        for file, figure in self._figures.items():
            with atomic_write(folder / file) as path:
                figure.savefig(path, dpi=_DOTS_PER_INCH, bbox_inches="tight")
        write_json(folder / "summary.json", summary)
        page = folder / "report.md"
        write_text(page, "\n\n".join([*self._lines, *_inputs_section(summary)]) + "\n")
        return page, summary


def require_report_folder(out: Path | None, tool: str) -> None:
    """Return if a report can be written; minutes of work should not end with finding that it cannot.

    Raises:
        FileError: the folder cannot be written to.
    """
    require_writable((out if out is not None else REPORTS / tool) / "report.md")


def describe_files(files: Iterable[Path], hashed: bool = True) -> list[dict[str, Any]]:
    """Path, size and, of files up to 256 MiB, SHA-256 of what a probe read.

    Args:
        files: in the order to list them in.
        hashed: False where the contents were not read either.
    """
    return [_describe(Path(file), hashed) for file in files]


def _describe(file: Path, hashed: bool) -> dict[str, Any]:
    size = file.stat().st_size
    digest = None
    if hashed and size <= _HASHED_BYTES:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"path": str(file), "bytes": size, "sha256": digest}


def _circumstances() -> dict[str, Any]:
    from latentloom.runs import environment  # torch, which a report on headers needs nowhere else

    branch, commit = environment.git_state()
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git_branch": branch,
        "git_commit": commit,
        "versions": environment.package_versions(),
    }


def _inputs_section(summary: Mapping[str, Any]) -> list[str]:
    """What was read and how, below the findings."""
    lines = ["## Inputs", f"`{summary['command']}`, {summary['date']}"]
    for name, given in summary["inputs"].items():
        if isinstance(given, list) and given and isinstance(given[0], Mapping):
            files = [f"- `{file['path']}`, {file['bytes']:,} bytes{_digest(file)}" for file in given]
            lines.append(f"{name}:\n\n" + "\n".join(files))
        elif isinstance(given, list):
            lines.append(f"{name}:\n\n" + "\n".join(f"- {_cell(item)}" for item in given))
        else:
            lines.append(f"{name}: {_cell(given)}")
    lines += [f"{name}: {_cell(value)}" for name, value in summary["settings"].items()]
    return lines


def _digest(file: Mapping[str, Any]) -> str:
    return f", sha256 {file['sha256'][:16]}" if file["sha256"] else ""


def _new_folder(root: Path, name: str) -> Path:
    safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "run"
    stem, number = f"{datetime.now():%Y%m%d-%H%M%S}-{safe}", 1
    while True:
        folder = root / (stem if number == 1 else f"{stem}-{number}")
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()  # fails when another run took the name, in whichever process
        except FileExistsError:
            number += 1
        except OSError as error:
            raise FileError(f"cannot make {folder}: {error.strerror}; give --out a folder to write to") from error
        else:
            return folder


def _cell(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value).replace("|", "\\|").replace("\n", " ")
