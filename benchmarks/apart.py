"""Functions called in fresh processes, and the memory that they need there."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

# a server that has imported everything forks them, so that no process spends seconds on imports
_CONTEXT = get_context("forkserver")
_PRELOADED = ["__main__", "latentloom.finetune.session", "latentloom.finetune.cache", "torch.utils.flop_counter"]
# DeepSpeed reads it when it is imported, and warns on standard output where it has to guess
os.environ.setdefault("DS_ACCELERATOR", "cpu")


def call_apart(work: Callable[..., Any], *given: Any, num_processes: int = 1) -> list[Any]:
    """What the function gives in each of so many processes that start together, as torch.distributed wants it.

    Raises:
        RuntimeError: one of them ended without a result; its error is on standard error.
    """
    _CONTEXT.set_forkserver_preload(_PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(num_processes)]
    processes = [
        _CONTEXT.Process(target=_call, args=(sender, rank, num_processes, port, work, given))
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process, (_, sender) in zip(processes, pipes, strict=True):
        process.start()
        sender.close()  # so that the end of the process is the end of the pipe
    try:
        return [receiver.recv() for receiver, _ in pipes]
    except EOFError as error:
        raise RuntimeError(f"{work.__name__}{given} failed in a process of its own") from error
    finally:
        for process in processes:
            process.join()


def _call(
    sender: Connection, rank: int, num_processes: int, port: int, work: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    os.dup2(2, 1)  # standard output is the benchmark's
    torch.set_num_threads(1)
    if num_processes > 1:
        place = {"RANK": rank, "WORLD_SIZE": num_processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in place.items()})
    sender.send(work(*given))


@contextmanager
def watched_memory() -> Iterator[Callable[[], float]]:
    """A function that gives the most megabytes in use since the context began, beyond those in use then.

    Memory of the process alone: mapped files, libraries among them, do not count. It is looked at every 2 ms.
    """
    before = peak = _private_pages()
    ends = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ends.is_set():
            peak = max(peak, _private_pages())
            time.sleep(0.002)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield lambda: (peak - before) * os.sysconf("SC_PAGE_SIZE") / 2**20
    finally:
        ends.set()
        thread.join()


def _private_pages() -> int:
    resident, mapped = Path("/proc/self/statm").read_text().split()[1:3]
    return int(resident) - int(mapped)
