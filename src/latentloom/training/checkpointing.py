"""The state of a training run in one safetensors file, written atomically: weights, averages, optimizers, step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from latentloom.errors import CheckpointError
from latentloom.storage import atomic_write, read_header


@runtime_checkable
class Stateful(Protocol):
    """Whatever gives its state as tensors and takes it back: modules, averages, histories."""

    def state_dict(self) -> Mapping[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor], /) -> Any: ...


class TrainedWeights:
    """The state of a network without what is frozen in it, such as the large base of a LoRA.

    Args:
        network: whose parameters that need no gradient are left out; buffers are kept.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def state_dict(self) -> dict[str, Tensor]:
        named = self.network.named_parameters(remove_duplicate=False)  # the state names shared weights twice, too
        frozen = {name for name, parameter in named if not parameter.requires_grad}
        return {name: value for name, value in self.network.state_dict().items() if name not in frozen}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if missing := self.state_dict().keys() - state.keys():
            raise ValueError(f"{len(missing)} weights are missing, such as {min(missing)}")
        if unknown := self.network.load_state_dict(state, strict=False).unexpected_keys:
            raise ValueError(f"{len(unknown)} weights are unknown, such as {unknown[0]}")


def save_state(path: Path, step: int, parts: Mapping[str, Stateful], optimizers: Sequence[Optimizer]) -> None:
    """Write everything `load_state` needs to continue after `step` completed steps."""
    tensors = {"step": torch.tensor(step)}
    for name, part in parts.items():
        tensors |= {f"{name}/{key}": value for key, value in part.state_dict().items()}
    for index, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer{index}/{parameter}/{key}": torch.as_tensor(value) for key, value in state.items()}
    with atomic_write(path) as temporary:
        save_file({key: value.detach().contiguous().clone() for key, value in tensors.items()}, temporary)


def load_state(path: Path, parts: Mapping[str, Stateful], optimizers: Sequence[Optimizer]) -> int:
    """Fill the parts and optimizers from a file that `save_state` wrote; returns the number of completed steps.

    Raises:
        FileError: where there is no such file.
        CorruptFileError: where the file is damaged.
        CheckpointError: where the file belongs to other parts than these.
    """
    read_header(path)
    tensors = load_file(path)
    try:
        for name, part in parts.items():
            part.load_state_dict(_below(tensors, name))
        for index, optimizer in enumerate(optimizers):
            state = _optimizer_state(optimizer, _below(tensors, f"optimizer{index}"))
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        return int(tensors["step"])
    except (LookupError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} holds the state of another run: start in an empty folder") from error


def _optimizer_state(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    # torch checks neither which parameters a state belongs to nor its shapes; a wrong one would fail steps later
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, entry = key.split("/")
        if value.ndim and value.shape != shapes[int(number)]:
            raise ValueError(f"{key} has the shape {tuple(value.shape)}, its parameter {tuple(shapes[int(number)])}")
        state.setdefault(int(number), {})[entry] = value
    return state


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
