"""The processes of a run that torchrun started, and the device of each."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor, distributed

from latentloom.runs.processes import choose_device, is_distributed

#: Others wait while the first process alone reads shards, fits classes or evaluates; torchrun ends them if it fails.
LONGEST_WAIT = timedelta(days=30)


@contextmanager
def joined_processes(device: str | None) -> Iterator[torch.device]:
    """This process's device; under torchrun the process group is joined for as long, with an accelerator to each.

    A process that torchrun did not start stays alone, and one that is in a group already stays in it.

    Args:
        device: cpu, cuda, cuda:N or None, as in the settings.

    Raises:
        ConfigError: a device that this machine does not have.
    """
    chosen = choose_device(device)
    if is_distributed() or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(chosen)
    elif sys.platform == "linux" and os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the host's name, which may not resolve
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=LONGEST_WAIT)
    try:
        yield chosen
    finally:
        distributed.destroy_process_group()


def num_processes() -> int:
    """Processes of the group; 1 when alone."""
    return distributed.get_world_size() if is_distributed() else 1


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in their order; each has as many. No gradient flows."""
    if not is_distributed():
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def add_up(values: Tensor) -> None:
    """Replace a tensor by its sum over the processes, in place."""
    if is_distributed():
        distributed.all_reduce(values)


def wait_for_all() -> None:
    """Return once every process of the group is here."""
    if is_distributed():
        distributed.barrier()
