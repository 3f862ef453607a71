"""What every experiment needs around it: settings, a folder, a record, progress, a report, processes and seeds."""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "Config",
    "Report",
    "RunFolder",
    "RunRecord",
    "TrainingFacts",
    "all_reduce_mean_",
    "choose_device",
    "find_run",
    "is_distributed",
    "launch_processes",
    "list_runs",
    "load_config",
    "process_rank",
    "seed_everything",
    "to_toml",
    "track",
]

_MODULES = {
    "Config": "config",
    "Report": "report",
    "RunFolder": "folder",
    "RunRecord": "record",
    "TrainingFacts": "experiment",
    "all_reduce_mean_": "processes",
    "choose_device": "processes",
    "find_run": "catalog",
    "is_distributed": "processes",
    "launch_processes": "processes",
    "list_runs": "catalog",
    "load_config": "config",
    "process_rank": "processes",
    "seed_everything": "processes",
    "to_toml": "config",
    "track": "progress",
}

if TYPE_CHECKING:
    from latentloom.runs.catalog import find_run, list_runs
    from latentloom.runs.config import Config, load_config, to_toml
    from latentloom.runs.experiment import TrainingFacts
    from latentloom.runs.folder import RunFolder
    from latentloom.runs.processes import (
        all_reduce_mean_,
        choose_device,
        is_distributed,
        launch_processes,
        process_rank,
        seed_everything,
    )
    from latentloom.runs.progress import track
    from latentloom.runs.record import RunRecord
    from latentloom.runs.report import Report
else:  # records are read without torch, which takes seconds to import

    def __getattr__(name: str) -> object:
        """A public name, from its module, which is imported when the name is first asked for."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
