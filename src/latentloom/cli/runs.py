"""`latentloom runs`: what was run, with which settings, what came of it, and what was decided."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.runs_compare import command as compare
from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from latentloom.runs.record import RunRecord

app = typer.Typer(help="List past runs, show and compare them, and decide what to keep.", add_completion=False)
app.command("compare")(compare)

RootOption = Annotated[Path, typer.Option("--root", help="Folder that holds the run folders, at any depth.")]
ID_HELP = "As `latentloom runs list` prints it, the beginning of it, or the path of a run folder."
#: Characters of a command that the list shows at least.
SHORTEST = 12
RunArgument = Annotated[str, typer.Argument(metavar="ID", help=ID_HELP)]


@app.command("list")
def list_(root: RootOption = Path("runs"), json_file: JsonOption = None) -> None:
    """List the runs at and below a folder, oldest first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from latentloom.runs.catalog import stored_runs

    runs = stored_runs(root)
    rows = [
        (
            run.name,
            run.record.status,
            decision_word(run.record),
            duration(run.record.seconds),
            training_line(run.record),
        )
        for run in runs
    ]
    console = Console()
    # off a terminal rich assumes 80 columns, which leaves the command no room
    console = console if console.is_terminal else Console(width=160)
    columns = ("id", "status", "decision", "took", "training")
    widths = [max(len(text) for text in cells) for cells in zip(columns, *rows, strict=True)]
    # cut here, as rich takes from all columns evenly, until the narrow ones are gone
    room = max(console.width - sum(widths) - 2 * len(widths) - 2, SHORTEST)
    table = Table(box=None)
    for column, width in zip((*columns, "command"), (*widths, room), strict=True):
        table.add_column(column, no_wrap=True, overflow="ellipsis", width=width)
    for row, run in zip(rows, runs, strict=True):
        table.add_row(*(Text(fact) for fact in (*row, run.record.command)))
    console.print(table if runs else f"no runs in {root}", crop=False)
    emit_json(json_file, {"runs": [run.record.model_dump(mode="json") | {"path": str(run.path)} for run in runs]})


@app.command()
def show(run_id: RunArgument, root: RootOption = Path("runs"), json_file: JsonOption = None) -> None:
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


@app.command()
def decide(
    run_id: RunArgument,
    keep: Annotated[bool, typer.Option("--keep", help="The run's outcome is kept.")] = False,
    drop: Annotated[bool, typer.Option("--drop", help="It is dropped; no file is deleted.")] = False,
    why: Annotated[str, typer.Option("--why", help="The reason, in words; required.")] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Replace an earlier decision, which is noted.")] = False,
    root: RootOption = Path("runs"),
    json_file: JsonOption = None,
) -> None:
    """Write into a run's record whether it is kept or dropped, and why."""
    from latentloom.runs.catalog import find_stored_run
    from latentloom.runs.decisions import decide as write_decision

    if keep == drop:
        raise ConfigError(f"{'both' if keep else 'neither'} of --keep and --drop given; give one of them")
    if not why.strip():
        raise ConfigError('no reason given; add --why "..."')
    run = find_stored_run(root, run_id)
    record = write_decision(run, "keep" if keep else "drop", why, replace=replace)
    typer.echo(f"{run.name}: {decision_word(record)}, because {why.strip()}")
    emit_json(json_file, record.model_dump(mode="json"))


def decision_word(record: "RunRecord") -> str:
    """`keep` or `drop` where somebody decided; nothing otherwise."""
    from latentloom.runs.record import Decision

    return record.decision.choice if isinstance(record.decision, Decision) else ""


def training_line(record: "RunRecord") -> str:
    """What a run trains, with steps and batch sizes."""
    trainings = record.trainings.items()
    return "; ".join(f"{name}: {facts.steps} steps of {facts.batch_size}" for name, facts in trainings)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; nothing for a run that has not ended."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
