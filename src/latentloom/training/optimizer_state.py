"""What an optimizer remembers, as tensors under the names of the weights it moves."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from latentloom.errors import CheckpointError


@runtime_checkable
class TakesStateApart(Protocol):
    """An optimizer whose state holds more than plain tensors and numbers."""

    def to_tensors(self, state: dict[str, Any]) -> dict[str, Any]: ...
    def from_tensors(self, parameter: nn.Parameter, state: dict[str, Any]) -> dict[str, Any]: ...


def optimizer_state(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The optimizer's memory of these weights as plain tensors `<name>/<entry>`; rates are not part of it.

    A weight that never had a gradient has no entries. Tensors are not copied.

    Args:
        optimizer: of any kind that `latentloom.finetune.optimizers.make_optimizer` makes.
        named: weights by the names they are stored under; names hold no slash.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in named.items():
        state = optimizer.state.get(parameter, {})
        parts = optimizer.to_tensors(state) if isinstance(optimizer, TakesStateApart) else state
        # A Python integer becomes an int64 tensor without dimensions; no optimizer here keeps such a tensor itself.
        tensors |= {f"{name}/{entry}": torch.as_tensor(value) for entry, value in parts.items()}
    return tensors


def load_optimizer_state(
    optimizer: Optimizer, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]
) -> None:
    """Make the optimizer go on as the one that `optimizer_state` was read from.

    Args:
        optimizer: of the same kind, over these weights.
        named: weights by the names their state is stored under.
        tensors: by `<name>/<entry>`; those of other weights are left alone, so a stage can be given the whole run's.

    Raises:
        CheckpointError: a state belongs to a weight of another size.
    """
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        entries.setdefault(name, {})[entry] = value
    for name, parameter in named.items():
        if name not in entries:
            optimizer.state.pop(parameter, None)
            continue
        state = {entry: _entry(name, parameter, value) for entry, value in entries[name].items()}
        if isinstance(optimizer, TakesStateApart):
            state = optimizer.from_tensors(parameter, state)
        optimizer.state[parameter] = state


def _entry(name: str, parameter: nn.Parameter, value: Tensor) -> Tensor | int:
    if value.ndim == 0:
        return int(value) if value.dtype == torch.int64 else value.clone()
    # Scales of quantised blocks are vectors; whatever has the rank of a matrix has the weight's shape.
    if value.ndim > 1 and value.shape != parameter.shape:
        shapes = f"{tuple(value.shape)}, the weight {tuple(parameter.shape)}"
        raise CheckpointError(f"the optimizer's state of {name} has the shape {shapes}: resume with the run's settings")
    return value.to(parameter.device, copy=True)
