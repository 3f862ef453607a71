"""Whose a run's folder is: one with other settings, other data or other processes is not gone on with."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latentloom.errors import ConfigError, CorruptFileError
from latentloom.runs.process_group import wait_for_all
from latentloom.runs.processes import process_rank
from latentloom.storage import write_json
from latentloom.storage.header import existing_file

SETTINGS_NAME = "settings.json"


def samples_digest(fingerprint: str) -> str:
    """Sixteen hex digits that tell samples of this fingerprint from others."""
    return hashlib.sha256(fingerprint.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Sixteen hex digits that tell a file's content from others.

    Raises:
        FileError: no such file.
    """
    with existing_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def refuse_other_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Return if the folder holds nothing, or this run.

    Args:
        folder: of the run.
        run: what makes it the one it is: settings, data and the batch, as JSON values.

    Raises:
        ConfigError: it holds another one.
        CorruptFileError: what it holds cannot be told.
    """
    path = folder / SETTINGS_NAME
    if not path.exists():
        return
    try:
        earlier = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CorruptFileError(
            f"{path} is damaged, so it does not say whose the folder is; give another one"
        ) from error
    differing = [name for name in run if earlier.get(name) != run[name]]
    if differing:
        name = differing[0]
        raise ConfigError(
            f"{folder} holds a run with {name} = {earlier.get(name)!r}, not {run[name]!r}; give another folder, or "
            "what that run was made with"
        )


def claim_folder(folder: Path, run: Mapping[str, Any]) -> None:
    """Note whose the folder is; every process calls it, and the first one writes.

    Raises:
        ConfigError: it holds another run.
    """
    refuse_other_run(folder, run)
    wait_for_all()  # else a slower process would find what the first one writes
    if process_rank() == 0:
        write_json(folder / SETTINGS_NAME, dict(run))
    wait_for_all()
