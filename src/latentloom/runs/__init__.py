"""What every experiment needs around it: settings, a folder, a record, progress, a report, processes and seeds."""

from latentloom.runs.config import Config, load_config, to_toml
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
from latentloom.runs.record import RunRecord, find_run, list_runs
from latentloom.runs.report import Report

__all__ = [
    "Config",
    "Report",
    "RunFolder",
    "RunRecord",
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
