"""Attribute accuracies as a table on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentloom.micro.evaluate import Evaluation


def print_accuracy(results: "Sequence[Evaluation]") -> None:
    """One row per set of prompts, percent with 95 % intervals, and what a guess would reach."""
    from rich.console import Console
    from rich.table import Table

    from latentloom.micro.report import format_accuracy
    from latentloom.micro.score import chance

    table = Table(box=None)
    table.add_column("prompts")
    table.add_column("n", justify="right")
    attributes = list(results[0].accuracy)
    for attribute in attributes:
        table.add_column(f"{attribute} %", justify="right")
    for result in results:
        cells = [format_accuracy(result.accuracy[attribute]) or "-" for attribute in attributes]
        table.add_row(result.name, str(len(result.questions)), *cells)
    table.add_row("a guess", "", *(f"{100 * chance(attribute):.1f}" for attribute in attributes))
    console = Console()
    # Off a terminal rich assumes 80 columns, which would break the figures into pieces.
    console.print(table) if console.is_terminal else Console(width=160).print(table)
