"""Runs side by side: settings and facts in which they differ, and what they measured."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentloom.errors import CorruptFileError, FileError
from latentloom.runs.catalog import StoredRun

#: Parts of a record that are not facts to compare: they always differ, or have a table of their own.
_NOT_FACTS = {"id", "date", "results", "artifacts", "earlier_decisions"}
_INTERVAL = ("value", "low", "high")

Row = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Measure:
    """A number that a run came to, with the bounds of its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class MetricRow:
    """A metric in every run; None where a run does not have it.

    Attributes:
        name: dotted.
        measures: by run.
        differences: of each run's value less the first one's.
        ratios: of each run's value to the first one's; None also where that is 0.
    """

    name: str
    measures: tuple[Measure | None, ...]

    @property
    def differences(self) -> tuple[float | None, ...]:
        first = self.measures[0]
        return tuple(m.value - first.value if first is not None and m is not None else None for m in self.measures)

    @property
    def ratios(self) -> tuple[float | None, ...]:
        first = self.measures[0]
        if first is None or first.value == 0:
            return (None,) * len(self.measures)
        return tuple(m.value / first.value if m is not None else None for m in self.measures)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        runs: in the order in which they were named; the first is the one that the others are measured against.
        settings: dotted names of settings that differ, with the value in each run; None where a run lacks it.
        facts: the same of what the records state.
        metrics: every number that a run came to.
    """

    runs: tuple[StoredRun, ...]
    settings: tuple[Row, ...]
    facts: tuple[Row, ...]
    metrics: tuple[MetricRow, ...]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values; differences and ratios are to the first run."""
        metrics = [
            {
                "name": row.name,
                "values": [
                    None if m is None else {"value": m.value, "low": m.low, "high": m.high} for m in row.measures
                ],
                "differences": list(row.differences),
                "ratios": list(row.ratios),
            }
            for row in self.metrics
        ]
        return {
            "runs": [{"name": run.name, "path": str(run.path)} for run in self.runs],
            "settings": {name: list(values) for name, values in self.settings},
            "facts": {name: list(values) for name, values in self.facts},
            "metrics": metrics,
        }


def compare_runs(runs: Sequence[StoredRun]) -> Comparison:
    """Two or more runs side by side.

    Raises:
        FileError: the settings of a run are missing.
        CorruptFileError: they are damaged.
    """
    settings = [dict(flattened(read_settings(run))) for run in runs]
    records = [run.record.model_dump(mode="json") for run in runs]
    facts = [dict(flattened({k: v for k, v in record.items() if k not in _NOT_FACTS})) for record in records]
    for of_run, record in zip(facts, records, strict=True):
        of_run |= {f"results.{name}": value for name, value in flattened(record["results"]) if not _is_numeric(value)}
    measures = [dict(numbers(record["results"])) for record in records]
    rows = [MetricRow(name, tuple(found.get(name) for found in measures)) for name in _names(measures)]
    return Comparison(tuple(runs), _differing(settings), _differing(facts), tuple(rows))


def read_settings(run: StoredRun) -> dict[str, Any]:
    """The settings of a run, from its config.toml.

    Raises:
        FileError: there is none.
        CorruptFileError: it is not TOML.
    """
    path = run.path / "config.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileError(f"cannot read the settings {path}: {error.strerror}; compare runs that have theirs") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from error


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value by its dotted name; lists of sections count their places, other lists are values, empty ones too."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{name}.")
        elif not isinstance(value, Mapping):
            yield name, value


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Measure]]:
    """Every number of a run's results by its dotted name; `{value, low, high}` is one number with its interval."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, list):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            is_interval = all(_is_number(value.get(part)) for part in _INTERVAL)
            if is_interval:
                yield name, Measure(value["value"], value["low"], value["high"])
            rest = {part: item for part, item in value.items() if not (is_interval and part in _INTERVAL)}
            yield from numbers(rest, f"{name}.")
        elif _is_number(value):
            yield name, Measure(value)


def _differing(runs: Sequence[Mapping[str, Any]]) -> tuple[Row, ...]:
    rows = [(name, tuple(values.get(name) for values in runs)) for name in _names(runs)]
    return tuple((name, values) for name, values in rows if any(value != values[0] for value in values))


def _names(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all runs, in the order in which they are first met."""
    return list(dict.fromkeys(name for values in runs for name in values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_numeric(value: Any) -> bool:
    """A number, or a list of them."""
    return _is_number(value) or (isinstance(value, list) and all(_is_number(item) for item in value))
