"""What the processes of test_processes run: they import it by name."""

import os
from pathlib import Path

import torch

from latentloom.errors import ConfigError
from latentloom.runs import all_reduce_mean_, is_distributed, process_rank


class UnpicklableError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def average(rank: int, folder: str) -> None:
    values = [torch.full((2, 2), float(rank)), torch.tensor([rank * 10.0], dtype=torch.bfloat16), torch.zeros(0)]
    all_reduce_mean_(values)
    facts = [rank, process_rank(), is_distributed(), torch.get_num_threads(), values[0].tolist(), values[1].item()]
    Path(folder, f"{rank}.txt").write_text(repr(facts))


def fail_in_second(rank: int) -> None:
    if rank == 1:
        raise ConfigError("rate 3; give one below 1")
    all_reduce_mean_([torch.ones(1)])


def fail_strangely(rank: int) -> None:
    raise UnpicklableError(3, 4)


def die(rank: int) -> None:
    os._exit(7)
