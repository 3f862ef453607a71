"""Options that several commands share, and the JSON that measuring commands write."""

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic_core import to_json

from latentloom.storage import require_writable


def emit_json(target: str | None, payload: Mapping[str, Any]) -> None:
    """Write what a command measured to where `--json` says; without `--json` nothing happens.

    Args:
        target: a file, replaced as a whole or not at all; `-` for standard output; None for nowhere.
        payload: numbers, texts, lists and mappings; a number that is not finite becomes null.

    Raises:
        FileError: the file cannot be written.
    """
    if target is None:
        return
    text = to_json(payload, indent=2, inf_nan_mode="null").decode()
    if target == "-":
        print(text, file=_reserved_stdout.get() or sys.stdout)
    else:
        from latentloom.storage import write_text

        write_text(target, text + "\n")


def _reserve_stdout(context: Any, target: str | None) -> str | None:
    """With `--json -`, whatever else the command prints goes to standard error until it ends.

    Args:
        context: typer's own click context, of a class that typer does not export.
        target: the option's value.
    """
    if target == "-" and not context.resilient_parsing:
        token = _reserved_stdout.set(sys.stdout)
        context.with_resource(redirect_stdout(sys.stderr))
        context.call_on_close(lambda: _reserved_stdout.reset(token))
    elif target is not None and Path(target).is_dir():
        raise typer.BadParameter(f"{target} is a folder; give a file, or - for standard output")
    elif target is not None:
        require_writable(target)
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

CkptRootOption = Annotated[  # any path: the loader that reads it says what is missing and what to give
    Path | None,
    typer.Option("--ckpt-root", help="Checkpoint in any of the known layouts; MicroWan when not given."),
]
