"""Exponential moving average of a module's weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Float32 running average of those of a module's parameters that are trained; frozen ones stay what they are.

    Args:
        module: the module that is trained; what is frozen in it is so from now on.
        decay: weight of the past at each update, from 0 to 1; the first updates use a smaller one, so that the
            starting point is soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.weights = {name: value.detach().float().clone() for name, value in trained.items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self.num_updates += 1
        decay = min(self.decay, self.num_updates / (self.num_updates + 10))
        for name, weight in self.weights.items():
            weight.lerp_(module.get_parameter(name).float(), 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into the module, which may be frozen."""
        for name, weight in self.weights.items():
            module.get_parameter(name).copy_(weight)

    def state_dict(self) -> dict[str, Tensor]:
        """The average and its number of updates, as tensors."""
        return {**self.weights, "num_updates": torch.tensor(self.num_updates)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` gave."""
        self.num_updates = int(state["num_updates"])
        for name, weight in self.weights.items():
            if state[name].shape != weight.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, not {tuple(weight.shape)}")
            weight.copy_(state[name])
