"""Tables of names and values on a page."""

from collections.abc import Mapping
from typing import Any

from latentloom.runs import Report


def add_table(report: Report, heading: str, column: str, values: Mapping[str, Any]) -> None:
    """Add a heading and a row for each value; nothing where there are none."""
    if values:
        report.heading(heading)
        report.table([column, "value"], [[name, _stated(value)] for name, value in values.items()])


def _stated(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value) if value else None
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
