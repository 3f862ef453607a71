"""`latentloom runs`: what was run, with which settings, and what came of it."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json

app = typer.Typer(help="List past runs and show one.", add_completion=False)

RootOption = Annotated[Path, typer.Option("--root", help="Folder that holds the run folders.")]


@app.command("list")
def list_(root: RootOption = Path("runs"), json_file: JsonOption = None) -> None:
    """List the runs of a folder, oldest first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from latentloom.runs import list_runs

    records = list_runs(root)
    table = Table(box=None)
    table.add_column("id", no_wrap=True, min_width=max((len(record.id) for record in records), default=0))
    table.add_column("status", no_wrap=True, min_width=len("interrupted"))
    table.add_column("command", no_wrap=True, overflow="ellipsis")
    for record in records:
        table.add_row(record.id, record.status, Text(record.command))
    Console().print(table if records else f"no runs in {root}")
    emit_json(json_file, {"runs": [record.model_dump(mode="json") for record in records]})


@app.command()
def show(
    run_id: Annotated[str, typer.Argument(metavar="ID", help="As `latentloom runs list` prints it.")],
    root: RootOption = Path("runs"),
    json_file: JsonOption = None,
) -> None:
    """Show the whole record of one run."""
    from rich.console import Console
    from rich.pretty import Pretty
    from rich.table import Table
    from rich.text import Text

    from latentloom.runs import find_run

    record = find_run(root, run_id).model_dump(mode="json")
    table = Table("field", "value", box=None)
    for field, value in record.items():
        table.add_row(field, Text(value) if isinstance(value, str) else Pretty(value))
    Console().print(table)
    emit_json(json_file, record)
