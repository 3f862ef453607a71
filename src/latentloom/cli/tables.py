"""Tables on the terminal."""

from typing import Any


def print_table(columns: list[str], rows: list[list[Any]]) -> None:
    """A table on the terminal, numbers on the right."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    # Off a terminal rich assumes 80 columns, which would break the figures into pieces.
    console.print(table) if console.is_terminal else Console(width=160).print(table)
    console.print()
