"""The store's record of operations on embeddings: inputs, settings, outputs, time."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from latentloom.errors import ConfigError
from latentloom.storage.embedding_entries import Operation
from latentloom.storage.embedding_rows import now

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def insert_operation(
    connection: "DuckDBPyConnection",
    kind: str,
    inputs: Sequence[str],
    parameters: Mapping[str, object],
    outputs: Sequence[str],
    seconds: float,
) -> int:
    """Add an operation with its inputs, in order, and parameters, in one transaction; gives its number.

    Raises:
        ConfigError: a parameter that JSON cannot hold.
    """
    try:
        values = {name: json.dumps(value, allow_nan=False) for name, value in parameters.items()}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the parameters of {kind!r} cannot be recorded ({error}); give JSON values") from error
    connection.begin()
    row = connection.execute("SELECT coalesce(max(id), 0) + 1 FROM vector_operations").fetchone()
    assert row is not None
    number = row[0]
    connection.execute(
        "INSERT INTO vector_operations VALUES (?, ?, ?, ?, ?)", [number, kind, list(outputs), seconds, now()]
    )
    if inputs:
        connection.executemany(
            "INSERT INTO operation_inputs VALUES (?, ?, ?)",
            [[number, position, embedding_id] for position, embedding_id in enumerate(inputs)],
        )
    if values:
        connection.executemany(
            "INSERT INTO operation_parameters VALUES (?, ?, ?)",
            [[number, name, value] for name, value in values.items()],
        )
    connection.commit()
    return number


def recent_operations(connection: "DuckDBPyConnection", limit: int, kind: str | None) -> list[Operation]:
    """The last operations, newest first."""
    where, chosen = ("kind = ?", [kind]) if kind is not None else ("TRUE", [])
    rows = connection.execute(
        "SELECT id, kind, outputs, seconds, created, "
        "(SELECT list(embedding_id ORDER BY position) FROM operation_inputs WHERE operation_id = id), "
        "(SELECT list([name, value] ORDER BY name) FROM operation_parameters WHERE operation_id = id) "
        f"FROM vector_operations WHERE {where} ORDER BY id DESC LIMIT ?",
        [*chosen, limit],
    ).fetchall()
    return [
        Operation(
            number=number,
            kind=name,
            inputs=inputs or [],
            outputs=outputs,
            parameters={key: json.loads(value) for key, value in parameters or []},
            seconds=seconds,
            created=created.replace(tzinfo=UTC),
        )
        for number, name, outputs, seconds, created, inputs, parameters in rows
    ]
