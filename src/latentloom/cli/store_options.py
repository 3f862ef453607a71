"""What the verbs of `latentloom store` share: the file, ages and sizes in words, entries as tables and as JSON."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.errors import ConfigError
from latentloom.storage.byte_sizes import in_words

if TYPE_CHECKING:
    from rich.table import Table

    from latentloom.storage import EmbeddingStore
    from latentloom.storage.embedding_entries import EmbeddingEntry

DEFAULT_WAIT = 60.0
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BYTES |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
ID_LETTERS = 12  # of an id in a table; enough to be given back

DbOption = Annotated[
    Path | None,
    typer.Option(
        "--db",
        metavar="FILE",
        help="The store; $LATENTLOOM_STORE or latentloom/embeddings.duckdb in the user's data folder when not given.",
    ),
]
WaitOption = Annotated[
    float, typer.Option("--wait", min=0, max=1e6, help="Seconds to wait for another process that has the file.")
]
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `latentloom store list` prints it.")]
KindOption = Annotated[str | None, typer.Option("--kind", help="Only of this kind, such as encoded or difference.")]


def open_store(db: Path | None, wait: float) -> "EmbeddingStore":
    """The store that the options name."""
    from latentloom.storage import EmbeddingStore

    return EmbeddingStore(db, wait)


def parse_age(text: str | None, option: str) -> timedelta | None:
    """A time such as 90s, 30m, 12h, 7d or 2w; None for None.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else None
    if seconds is None or seconds >= timedelta.max.total_seconds():
        raise ConfigError(f"{option} {text!r} is no age; give a number with s, m, h, d or w, as in 30d")
    return timedelta(seconds=seconds)


def parse_bytes(text: str | None, option: str) -> int | None:
    """A size such as 500MB, 2GiB or 4096; None for None.

    Raises:
        ConfigError: something else.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    size = float(found[1]) * BYTES[found[2]] if found and found[2] in BYTES else None
    if size is None or size >= 2**63:
        raise ConfigError(f"{option} {text!r} is no size; give bytes, or a number with kB, MB, GB, TB, KiB, MiB, GiB")
    return int(size)


def entry_table(entries: "Sequence[EmbeddingEntry]", **columns: Sequence[str]) -> "Table":
    """One line per entry, with further columns in front; encoder and dtype are shown where they differ."""
    from rich.table import Table
    from rich.text import Text

    cells: dict[str, Sequence[str]] = {**columns, "id": [entry.id[:ID_LETTERS] for entry in entries]}
    cells["kind"] = [entry.kind for entry in entries]
    for name in ("encoder", "dtype"):
        values = [str(getattr(entry, name))[:ID_LETTERS] for entry in entries]
        if len(set(values)) > 1:
            cells[name] = values
    cells["tokens"] = [f"{entry.num_tokens} x {entry.dim}" for entry in entries]
    cells["bytes"] = [in_words(entry.stored_bytes) for entry in entries]
    cells["created (UTC)"] = [f"{entry.created:%y-%m-%d %H:%M}" for entry in entries]
    cells["prompt"] = [" ".join(entry.prompt.split()) for entry in entries]
    table = Table(box=None)
    for name, values in cells.items():
        width = max(map(len, (name, *values))) if name != "prompt" else len(name)
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=min(width, 24))
    for row in zip(*cells.values(), strict=True):
        table.add_row(*map(Text, row))
    return table


def entry_json(entry: "EmbeddingEntry") -> dict[str, Any]:
    """An entry with what follows from it."""
    return {**asdict(entry), "true_bytes": entry.true_bytes, "padded_bytes": entry.padded_bytes}
