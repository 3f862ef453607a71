"""Files of our own kinds that nodes offer: those in ComfyUI's models folder, and those that ship for MicroWan."""

import sys
from pathlib import Path
from typing import Any

from latentloom import micro
from latentloom.comfy import core
from latentloom.errors import ConfigError

SHIPPED = "microwan"
"""Before the names of files that come with this package."""


def files_of(kind: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Every file by the name that a node shows, sorted; a user's own come first.

    Args:
        kind: folder below ComfyUI's `models/latentloom`, and of MicroWan's shipped files.
        suffixes: of the files.
    """
    shipped = _below(Path(micro.__file__).parent / kind, suffixes)
    own = _below(core.models_folder(kind), suffixes) if "folder_paths" in sys.modules else {}
    return own | {f"{SHIPPED}/{name}": path for name, path in shipped.items()}


def file_named(kind: str, suffixes: tuple[str, ...], name: str) -> Path:
    """The file that a node's choice names.

    Raises:
        ConfigError: there is none.
    """
    found = files_of(kind, suffixes)
    if name not in found:
        raise ConfigError(f"there is no file {name!r}; put it into {folder_hint(kind)} and reload the page")
    return found[name]


def folder_hint(kind: str) -> str:
    """Where users put their files, in words."""
    return f"ComfyUI/models/latentloom/{kind}"


def state_of_files(kind: str, suffixes: tuple[str, ...]) -> Any:
    """A value that changes when a file comes, goes or is written again."""
    return [(name, path.stat().st_mtime_ns) for name, path in files_of(kind, suffixes).items()]


def _below(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return dict(sorted((path.relative_to(folder).as_posix(), path) for path in found))
