"""What a run ran on: code, machine, versions, memory."""

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RECORDED_PACKAGES = ("latentloom", "torch", "diffusers", "transformers", "numpy", "safetensors", "av")
NO_GIT = "not a git checkout"


def git_state(folder: Path = Path(__file__).parent) -> tuple[str, str]:
    """Branch and commit of the code in `folder`; a commit with local changes says so."""
    # an environment inside someone else's repository is not that repository's code
    if _git(folder, "ls-files", "--error-unmatch", ".") is None:
        return NO_GIT, NO_GIT
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "no branch yet"
    commit = _git(folder, "rev-parse", "HEAD") or "no commit yet"
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return branch, f"{commit} with local changes" if changed else commit


def package_versions() -> dict[str, str]:
    """Name -> version of Python and of every installed package that shapes results."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def device_description() -> str:
    """The accelerator, or the processor and its number of cores."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"cpu: {_processor_name()}, {os.cpu_count()} cores"


def peak_memory_mb() -> float:
    """The most memory this process, or a child that has ended, held so far, in MB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def peak_device_memory_mb() -> float | None:
    """The most accelerator memory this process held so far, in MB; None without an accelerator."""
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None


def _git(folder: Path, *arguments: str) -> str | None:
    # inside a git hook these variables point git at the repository of the hook
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=plain, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, or one that git refuses to read: the record says so
    return done.stdout.strip()


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
