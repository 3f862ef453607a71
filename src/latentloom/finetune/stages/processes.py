"""This process's place among those that train together, under DeepSpeed's launcher, torchrun or none."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed

from latentloom.errors import ConfigError
from latentloom.runs import choose_device
from latentloom.runs.processes import is_distributed


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Args:
        rank, world_size: among all processes.
        stage: of the pipeline.
        replica, num_replicas: of the processes that hold this stage.
        device: where it computes.
    """

    rank: int
    world_size: int
    stage: int
    replica: int
    num_replicas: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@contextmanager
def joined_processes(num_stages: int, device: str | None) -> Iterator[Place]:
    """Join the other processes, or make a group of one; a group that was made here is left at the end.

    Args:
        num_stages: of the pipeline; divides the number of processes.
        device: `cpu`, `cuda` or None.

    Raises:
        ConfigError: a number of processes that cannot be cut into stages.
    """
    chosen = choose_device(device)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if chosen.type == "cuda" else chosen
    if where.type == "cuda":
        torch.cuda.set_device(where)
    joined_before = is_distributed()
    if not joined_before:
        _join(where)
    try:
        yield _place(num_stages, where)
    finally:
        if not joined_before:
            distributed.destroy_process_group()


def _place(num_stages: int, device: torch.device) -> Place:
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    if world_size % num_stages:
        raise ConfigError(
            f"pipeline_stages = {num_stages} does not divide {world_size} processes; start a multiple of it with "
            f"`deepspeed --num_gpus={num_stages} --module latentloom.finetune.train`, or set pipeline_stages = 1"
        )
    os.environ.setdefault("LOCAL_RANK", str(rank))  # DeepSpeed reads its device from it
    num_replicas = world_size // num_stages
    _begin_deepspeed(device)
    return Place(rank, world_size, rank // num_replicas, rank % num_replicas, num_replicas, device)


def _join(device: torch.device) -> None:
    backend = "nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        if sys.platform == "linux" and os.environ.get("MASTER_ADDR") in ("127.0.0.1", "localhost"):
            os.environ.setdefault(
                "GLOO_SOCKET_IFNAME", "lo"
            )  # else gloo looks up the host's name, which may not resolve
        distributed.init_process_group(backend)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)


def _begin_deepspeed(device: torch.device) -> None:
    """Let DeepSpeed take the group that is there, on this device, and compile nothing."""
    os.environ["DS_ACCELERATOR"] = device.type
    import deepspeed
    from deepspeed import comm
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    from latentloom.finetune.stages.engine import quiet

    accelerator = get_accelerator()
    if device.type == "cpu" and (accelerator is None or accelerator.device_name() != "cpu"):
        set_accelerator(CPU_Accelerator())  # it was imported before, and took what it found

    compatible = deepspeed.ops.__compatible_ops__
    before = dict(compatible)
    try:
        # its shared-memory operator for the CPU would be compiled at the first start, for minutes
        compatible["deepspeed_shm_comm"] = False
        with quiet():
            comm.init_distributed(dist_backend=distributed.get_backend())
    finally:
        compatible.clear()
        compatible.update(before)
