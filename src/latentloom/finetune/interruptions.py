"""Signals that ask a run to stop, noticed between two steps and agreed on by all processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from latentloom.finetune.stages.processes import Place


@contextmanager
def noticed_signals() -> Iterator[list[int]]:
    """A list that fills when SIGTERM or SIGINT arrives, so that a step is finished and saved first.

    A second SIGINT stops at once: a person does not want to wait. A second SIGTERM does not: under DeepSpeed's
    launcher, one that goes to all processes arrives twice, and Ctrl-C is followed by one.
    """
    noticed: list[int] = []

    def notice(number: int, frame: object) -> None:
        noticed.append(number)
        if noticed.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def agreed(wishes: tuple[bool, ...], place: Place) -> tuple[bool, ...]:
    """For each wish whether any process has it; the same in all of them."""
    if place.world_size == 1:
        return wishes
    counts = torch.tensor(wishes, dtype=torch.int32, device=place.device)
    distributed.all_reduce(counts, op=distributed.ReduceOp.MAX)
    return tuple(bool(count) for count in counts)
