"""What is used of ComfyUI itself: its modules, found only when a node runs."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from latentloom.errors import ConfigError


def module(name: str) -> Any:
    """One of ComfyUI's modules.

    Raises:
        ConfigError: this is not a process of ComfyUI's.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"there is no module {error.name}: this node runs inside ComfyUI only") from None


def release_memory() -> None:
    """Give back what the graphics card holds for nobody; outside ComfyUI there is nothing to give back."""
    management = sys.modules.get("comfy.model_management")
    if management is not None:
        management.soft_empty_cache()


def temporary_folder() -> Path:
    """Where ComfyUI serves pictures from that need not last."""
    return Path(module("folder_paths").get_temp_directory())


def models_folder(kind: str) -> Path:
    """ComfyUI's folder for files of our own kind, such as `control_vectors`; it is not made."""
    return Path(module("folder_paths").models_dir) / "latentloom" / kind
