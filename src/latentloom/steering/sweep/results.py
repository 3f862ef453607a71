"""The results of a sweep on disk, part by part, so that an interrupted sweep continues where it stopped."""

import json
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from latentloom.errors import ConfigError, CorruptFileError
from latentloom.storage import write_json

SWEEP_NAME = "sweep.json"


class SweepFile:
    """Results under the settings that they belong to; every new result is on disk at once.

    Args:
        path: of the file; read where it exists.
        settings: JSON values that all results depend on.

    Raises:
        ConfigError: the file holds results of other settings.
        CorruptFileError: it is damaged.
    """

    def __init__(self, path: Path | str, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))  # as they come back from the file
        self.results: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            held = _read(self.path)
            if held["settings"] != self.settings:
                names = [name for name in self.settings if held["settings"].get(name) != self.settings[name]]
                raise ConfigError(
                    f"{self.path.parent} holds a sweep with other {', '.join(names) or 'settings'}; "
                    "give another --out, or delete it"
                )
            self.results = held["results"]

    def section(self, name: str) -> MutableMapping[str, Any]:
        """The results of one kind, by key; setting one writes the file."""
        return _Section(self, self.results.setdefault(name, {}))

    def write(self) -> None:
        """Write everything, as a whole or not at all."""
        write_json(self.path, {"settings": self.settings, "results": self.results})


class _Section(MutableMapping[str, Any]):
    def __init__(self, file: SweepFile, values: dict[str, Any]) -> None:
        self._file, self._values = file, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._file.write()

    def __delitem__(self, key: str) -> None:
        del self._values[key]
        self._file.write()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _read(path: Path) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        settings, results = held["settings"], held["results"]
        if not isinstance(settings, dict) or not all(isinstance(each, dict) for each in results.values()):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptFileError(f"{path} is not a sweep's results; delete it, or give another --out") from error
    return held
