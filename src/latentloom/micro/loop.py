"""What MicroWan's training stages share: one optimizer step over all processes, and randomness by step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentloom.runs import all_reduce_mean_


def step_generator(seed: int, step: int, rank: int) -> torch.Generator:
    """The random source of one step in one process: a resumed run draws what the uninterrupted one draws."""
    return torch.Generator().manual_seed(((seed << 20) + step) * 64 + rank)


def take_step(loss: Tensor, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer], clip: float = 1.0) -> None:
    """One optimizer step on the mean gradient of all processes, its norm limited to `clip`."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    trained = [item for module in modules for item in module.parameters() if item.grad is not None]
    all_reduce_mean_([item.grad for item in trained if item.grad is not None])
    nn.utils.clip_grad_norm_(trained, clip)
    for optimizer in optimizers:
        optimizer.step()
