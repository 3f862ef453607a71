"""`latentloom convert SRC DST --layout official|diffusers|comfy`: a checkpoint in another layout, bit for bit."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TargetLayout(StrEnum):
    official = "official"
    diffusers = "diffusers"
    comfy = "comfy"


class Expert(StrEnum):
    high = "high"
    low = "low"


def command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint in any layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    layout: Annotated[TargetLayout, typer.Option(help="The layout of the new checkpoint.")],
    expert: Annotated[
        Expert | None,
        typer.Option(help="Of a pair of experts, convert only this one; of a single file, which one it is."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at DST.")] = False,
) -> None:
    """Rewrite a checkpoint in another layout; names change, values, types and shapes do not."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from latentloom.wan.convert import convert
    from latentloom.wan.layouts import recognise

    found = recognise(source)
    total = sum(tensor.num_bytes for part in found.components for tensor in part.stored.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("converting", total=total)
        written = convert(
            source,
            target,
            layout.value,
            expert=expert.value if expert else None,
            overwrite=overwrite,
            on_bytes=lambda num_bytes: progress.advance(task, num_bytes),
        )
    models = ", ".join(part.title for part in written.components)
    typer.echo(f"{target}: {models} in the {layout.value} layout")
