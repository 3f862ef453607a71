"""Where and from which seed a run computes, alone or in several processes."""

import os
import pickle
import random
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.multiprocessing import get_context
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

from latentloom.errors import ConfigError


def seed_everything(seed: int) -> torch.Generator:
    """A CPU generator started from `seed`; Python's, numpy's and torch's own randomness start from it too.

    Raises:
        ConfigError: a seed outside 0..2**32-1.
    """
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}; give one from 0 to {2**32 - 1}")
    random.seed(seed)
    np.random.seed(seed)  # libraries draw from numpy's global state
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def choose_device(name: str | None = None) -> torch.device:
    """The device of that name; without a name the accelerator, or the CPU where there is none.

    Raises:
        ConfigError: an unknown name, or a device that this machine does not have.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r}; give cpu, cuda or cuda:<number>") from error
    present = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= present:
        raise ConfigError(f"device {name!r}; this machine has {present} CUDA devices, give cpu or another number")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}; give cpu, cuda or cuda:<number>")
    return device


def is_distributed() -> bool:
    """True inside a process group."""
    return distributed.is_available() and distributed.is_initialized()


def process_rank() -> int:
    """This process's number in its group; 0 when alone."""
    return distributed.get_rank() if is_distributed() else 0


def all_reduce_mean_(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over the processes, in place; nothing happens when alone.

    All travel as one float32 message: many small ones cost a round trip each.
    """
    tensors = list(tensors)
    if not is_distributed() or not tensors:
        return
    with torch.no_grad():
        message = torch.cat([tensor.detach().float().reshape(-1) for tensor in tensors])
        distributed.all_reduce(message)
        message /= distributed.get_world_size()
        parts = message.split([tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, parts, strict=True):
            tensor.copy_(mean.view(tensor.shape))


def launch_processes(fn: Callable[..., Any], num_processes: int, *args: Any) -> None:
    """Run `fn(rank, *args)` in `num_processes` new single-threaded processes that form a gloo group; wait for all.

    Args:
        fn: a function at the top level of an importable module (processes are spawned, not forked).
        num_processes: at least 1.
        args: what every process gets, picklable.

    Raises:
        ConfigError: fewer than one process.
        ValueError: `fn` is defined inside another function.
        RuntimeError: a process was killed.
        Exception: the first error of a process, as it was raised there; the other processes are ended.
    """
    if num_processes < 1:
        raise ConfigError(f"{num_processes} processes; give at least 1")
    if "<" in getattr(fn, "__qualname__", "<"):
        raise ValueError(f"{fn!r} cannot be found by a new process; define it at the top level of a module")
    errors = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(_run_rank, (fn, num_processes, Path(folder) / "rendezvous", errors, args), num_processes)
        except ProcessRaisedException as raised:
            if errors.empty():
                raise
            # the first in the queue is the cause; a lost connection in the others is its consequence
            raise errors.get() from raised
        except ProcessExitedException as ended:
            raise RuntimeError(f"{ended}, without an error of its own (out of memory?)") from ended


def _run_rank(rank: int, fn: Callable[..., Any], num_processes: int, meeting: Path, errors: Any, args: tuple) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # else gloo looks up the host's name, which may not resolve
    distributed.init_process_group("gloo", init_method=meeting.as_uri(), rank=rank, world_size=num_processes)
    try:
        fn(rank, *args)
    except Exception as error:
        errors.put(_portable(error, rank))
        raise
    finally:
        distributed.destroy_process_group()


def _portable(error: Exception, rank: int) -> Exception:
    """`error` with the process's traceback as a note, or a RuntimeError with it when the class does not pickle."""
    text = "".join(traceback.format_exception(error))[-8000:]  # a pipe holds 64 KB, and nobody reads until all end
    error.add_note(f"raised in process {rank}:\n{text}")
    try:
        if len(pickle.dumps(error)) < 32_000:
            return pickle.loads(pickle.dumps(error))
    except Exception as reason:  # any class may refuse to pickle, in its own way
        text += f"\n({type(error).__name__} cannot be passed on: {reason})"
    return RuntimeError(f"process {rank} failed: {type(error).__name__}\n{text}")
