"""Where a training's measures go beside its curve: TensorBoard, and Weights & Biases when asked for."""

import os
import secrets
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from latentloom.bridge.config import BridgeConfig
from latentloom.errors import ConfigError
from latentloom.runs import RunFolder
from latentloom.storage import write_text


class Tracker:
    """As a context manager, takes measures by step and closes what it opened.

    Args:
        run: whose TensorBoard is written.
        config: the settings; `logging.wandb` also logs to Weights & Biases, by its WANDB_* variables.

    Raises:
        ConfigError: wandb is asked for and not installed.
    """

    def __init__(self, run: RunFolder, config: BridgeConfig) -> None:
        self.run = run
        self.config = config
        self._wandb: Any = None
        require_wandb(config)

    def log(self, step: int, measures: Mapping[str, float]) -> None:
        """Add the measures of a step."""
        writer = self.run.tensorboard()
        for name, value in measures.items():
            writer.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(measures), step=step)

    def __enter__(self) -> "Tracker":
        if self.config.logging.wandb:
            wandb = import_module("wandb")  # optional
            name = self.config.logging.run_name
            settings = self.config.model_dump(mode="json")
            about = {"name": name, "config": settings, "dir": str(self.run.path), "resume": "allow"}
            self._wandb = wandb.init(id=os.environ.get("WANDB_RUN_ID") or _run_id(self.run.path), **about)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)


def _run_id(folder: Path) -> str:
    """What this run is called by Weights & Biases: one that goes on continues its own curves."""
    path = folder / "wandb_id.txt"
    if not path.exists():
        write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def require_wandb(config: BridgeConfig) -> None:
    """Return if Weights & Biases is not asked for, or is there.

    Raises:
        ConfigError: it is asked for and not installed.
    """
    if config.logging.wandb and find_spec("wandb") is None:
        raise ConfigError("logging.wandb = true, and wandb is not installed; run pip install wandb, or set it to false")
