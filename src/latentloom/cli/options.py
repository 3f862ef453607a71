"""Options that several commands share, and the JSON that measuring commands write."""

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from latentloom.errors import FileError


def emit_json(target: str | None, payload: Mapping[str, Any]) -> None:
    """Write what a command measured to where `--json` says; without `--json` nothing happens.

    Args:
        target: a file, replaced as a whole or not at all; `-` for standard output; None for nowhere.
        payload: numbers, texts, lists and mappings.

    Raises:
        FileError: the file cannot be written.
        ValueError: a number is not finite, which JSON cannot hold; measure None instead.
    """
    if target is None:
        return
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)
    if target == "-":
        print(text, file=_reserved_stdout.get() or sys.stdout)
        return
    from latentloom.storage import write_text

    try:
        write_text(Path(target), text + "\n")
    except OSError as error:
        raise FileError(f"--json {target}: {error.strerror}; give a file that can be written, or - to print") from error


def _reserve_stdout(context: typer.Context, target: str | None) -> str | None:
    """With `--json -`, whatever else the command prints goes to standard error until it ends."""
    if target == "-" and not context.resilient_parsing:
        token = _reserved_stdout.set(sys.stdout)
        context.with_resource(redirect_stdout(sys.stderr))
        context.call_on_close(lambda: _reserved_stdout.reset(token))
    elif target is not None and Path(target).is_dir():
        raise typer.BadParameter(f"{target} is a folder; give a file, or - for standard output")
    return target


_reserved_stdout: ContextVar[TextIO | None] = ContextVar("reserved_stdout", default=None)

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        callback=_reserve_stdout,
        help="Write the measurements as JSON; - prints them, and nothing else, on standard output.",
    ),
]

CkptRootOption = Annotated[
    Path | None,
    typer.Option("--ckpt-root", exists=True, help="Checkpoint in any of the known layouts; MicroWan when not given."),
]
