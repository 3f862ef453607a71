"""`latentloom runs compare`: settings, facts and metrics of several runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.runs.comparison import Comparison

ABSENT = "\u2013"


def command(
    run_ids: Annotated[
        list[str], typer.Argument(metavar="ID ID...", help="Ids as `latentloom runs list` prints them, or run folders.")
    ],
    root: Annotated[Path, typer.Option("--root", help="Folder that holds the run folders, at any depth.")] = Path(
        "runs"
    ),
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", dir_okay=False, help="Write the comparison as a page.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Show in what runs differ, and what they measured against the first of them."""
    from latentloom.runs.catalog import find_stored_run
    from latentloom.runs.comparison import compare_runs

    if len(run_ids) < 2:
        raise ConfigError("one run has nothing to be compared with; give two or more ids")
    if html_file is not None:
        require_writable(html_file)
    runs = [find_stored_run(root, run_id) for run_id in run_ids]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"{', '.join(run.name for run in runs)} names a run twice; give each once")
    comparison = compare_runs(runs)
    show(comparison)
    if html_file is not None:
        write_page(comparison, html_file)
        typer.echo(f"page: {html_file}")
    emit_json(json_file, comparison.to_json())


def show(comparison: "Comparison") -> None:
    """Print the tables of a comparison; columns carry the runs' letters."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    for name, run in zip(letters(comparison), comparison.runs, strict=True):
        console.print(Text(f"{name}  {run.name}  ({run.record.status})"), soft_wrap=True)
    for title, columns, rows in tables(comparison):
        console.print()
        if not rows:
            console.print(Text(f"{title}: none"))
            continue
        console.print(Text(title, style="bold"))
        table = Table(box=None)
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place and title == METRICS else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell(value)) for value in row))
        console.print(table)


def write_page(comparison: "Comparison", path: Path) -> None:
    """Write the comparison as one HTML file."""
    from latentloom.runs import Report

    report = Report(f"{len(comparison.runs)} runs side by side")
    named = list(zip(letters(comparison), comparison.runs, strict=True))
    report.table(
        ["run", "id", "date", "status", "command"],
        [
            [name, run.name, f"{run.record.date:%Y-%m-%d %H:%M}", run.record.status, run.record.command]
            for name, run in named
        ],
    )
    for title, columns, rows in tables(comparison):
        report.heading(title)
        if rows:
            report.table(columns, [[cell(value) for value in row] for row in rows])
        else:
            report.paragraph("None.")
    report.write(path)


SETTINGS, FACTS, METRICS = "Settings that differ", "Facts that differ", "Metrics"


def tables(comparison: "Comparison") -> list[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows of each table."""
    first, *others = letters(comparison)
    against = [f"{sign} {first}" for sign in ("-", "/")]
    columns = ["metric", first, *(text for name in others for text in (name, *(f"{name} {end}" for end in against)))]
    metrics = []
    for row in comparison.metrics:
        cells: list[Any] = [row.name, row.measures[0]]
        for place in range(1, len(row.measures)):
            cells += [row.measures[place], signed(row.differences[place]), short(row.ratios[place])]
        metrics.append(cells)
    # with all their digits: two settings that differ must not read the same
    settings = [
        [name, *(repr(v) if isinstance(v, float) else v for v in values)] for name, values in comparison.settings
    ]
    return [
        (SETTINGS, ["setting", first, *others], settings),
        (FACTS, ["fact", first, *others], [[name, *values] for name, values in comparison.facts]),
        (METRICS, columns, metrics),
    ]


def letters(comparison: "Comparison") -> list[str]:
    """A short name for each run: A, B and so on; R27 from the 27th."""
    return [chr(ord("A") + place) if place < 26 else f"R{place + 1}" for place in range(len(comparison.runs))]


def signed(difference: float | None) -> str | None:
    """A difference with its sign."""
    return None if difference is None else f"{difference:+.4g}"


def short(ratio: float | None) -> str | None:
    """A ratio with four digits."""
    return None if ratio is None else f"{ratio:.4g}"


def cell(value: Any) -> str:
    """A value as a person reads it; what a run lacks is a dash."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value) or "none"
    return str(value)
