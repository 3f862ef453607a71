"""A backbone whose layers lie in parts on several GPUs: training it, and its state as whole tensors."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.model import LatentBridge
from latentloom.errors import ConfigError
from latentloom.runs import process_rank
from latentloom.runs.process_group import num_processes
from latentloom.runs.processes import all_reduce_mean_
from latentloom.training import TrainedWeights

#: Values of gradients that travel in one message; a larger gradient goes alone.
MESSAGE_VALUES = 2**24


def require_shardable(config: BridgeConfig) -> None:
    """Return if these processes can train the settings with sharded layers.

    Raises:
        ConfigError: there is one process, or the dtype is fp16, whose scaled gradients must all be whole or all in
            parts.
    """
    if num_processes() == 1:
        raise ConfigError(
            "training.parallel = 'fsdp' shards over several processes, and this is one; start them with torchrun "
            "--nproc_per_node N --no-python latentloom bridge train, or leave it out"
        )
    if config.training.dtype == "fp16":
        raise ConfigError("training.parallel = 'fsdp' does not work with training.dtype = 'fp16'; set bf16 or fp32")


def shard_bridge(bridge: LatentBridge, device: torch.device) -> None:
    """Leave on this process's device its share of every layer of the backbone, and all the rest whole.

    Embedding, final norm and output layer stay whole: a step uses them outside of the decoder's own pass. Layers are
    moved one at a time, so that a backbone on the CPU never lies whole on the device. Below float32 a layer is gathered
    in the dtype that it computes in, and its gradients are added up in float32.

    Args:
        bridge: the same in every process, on the CPU or on the device; what is not trained is frozen already.
        device: of this process.
    """
    decoder = bridge.backbone.decoder
    layers = list(decoder.get_submodule("layers").children())
    whole = [module for name, module in decoder.named_children() if name != "layers"]
    whole += [module for name, module in bridge.network.named_children() if module is not decoder]
    whole += [bridge.standardizer, bridge.latent_prefix, bridge.text_to_latent]
    for module in whole:
        module.to(device)
    sharding: dict[str, Any] = {"mesh": init_device_mesh(device.type, (num_processes(),))}
    if bridge.dtype != torch.float32:
        sharding["mp_policy"] = MixedPrecisionPolicy(bridge.dtype, torch.float32, cast_forward_inputs=False)
    for layer in layers:
        fully_shard(layer, **sharding)
    # the root of all layers gathers the next one while one computes; it has no weights of its own
    kept = {weight for module in whole for weight in module.parameters()}
    fully_shard(decoder, ignored_params=kept, **sharding)
    # that made the decoder an instance of a new class, of which transformers does not know that it can give the states
    # of its layers; its constructor says it like this for every class
    if isinstance(decoder, PreTrainedModel):
        _CAN_RECORD_REGISTRY[decoder] = decoder._can_record_outputs


def is_sharded(module: nn.Module) -> bool:
    """Whether some of its weights lie in parts."""
    return any(isinstance(weight, DTensor) for weight in module.parameters())


def average_whole_gradients(weights: Iterable[Tensor]) -> None:
    """Replace the gradients of weights that are not sharded by their means over the processes.

    Those of sharded ones are averaged in the backward pass.
    """
    message: list[Tensor] = []
    for weight in weights:
        if weight.grad is None or isinstance(weight.grad, DTensor):
            continue
        if sum(gradient.numel() for gradient in message) + weight.grad.numel() > MESSAGE_VALUES:
            all_reduce_mean_(message)
            message = []
        message.append(weight.grad)
    all_reduce_mean_(message)


def clip_gradients(weights: Iterable[Tensor], limit: float) -> Float[Tensor, ""]:
    """Shorten the gradients of whole and sharded weights together to a norm of at most `limit`; gives the norm before.

    Every process calls it and gets the same norm: that of all gradients as one vector.
    """
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(whole)
    if sharded:
        of_shards = nn.utils.get_total_norm(sharded)
        if isinstance(of_shards, DTensor):
            of_shards = of_shards.full_tensor()
        norm = torch.linalg.vector_norm(torch.stack([norm.to(of_shards.device), of_shards]))
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        (gradient.to_local() if isinstance(gradient, DTensor) else gradient).mul_(factor.to(gradient.dtype))
    return norm


def separated(weights: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Whole and sharded weights apart, as an optimizer wants them; a kind that there is none of is left out."""
    weights = list(weights)
    for kind in (False, True):
        if some := [weight for weight in weights if isinstance(weight, DTensor) == kind]:
            yield some


def whole_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with its sharded tensors put together, on the CPU, in the first process; the others are given nothing.

    Every process calls it: each sends its parts, one tensor at a time.
    """
    found = {}
    for name, value in state.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if process_rank() == 0:
            found[name] = whole.detach().cpu()
    return found


class WholeWeights:
    """The trained weights of a sharded network, given and taken as whole tensors.

    Args:
        network: as for `TrainedWeights`.
    """

    def __init__(self, network: nn.Module) -> None:
        self.weights = TrainedWeights(network)

    def state_dict(self) -> dict[str, Tensor]:
        """As `whole_tensors`."""
        return whole_tensors(self.weights.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this process's part of each whole tensor; every process is given the same."""
        own = self.weights.state_dict()
        self.weights.load_state_dict({name: _like(value, own.get(name)) for name, value in state.items()})


class WholeOptimizer:
    """The state of an optimizer over sharded weights, given and taken as whole tensors.

    Args:
        optimizer: whose state is named by the weight's number and the entry, as in `save_state`.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def state_dict(self) -> dict[str, Tensor]:
        """As `whole_tensors`."""
        states = self.optimizer.state_dict()["state"]
        flat = {f"{number}/{entry}": value for number, state in states.items() for entry, value in state.items()}
        return whole_tensors({name: torch.as_tensor(value) for name, value in flat.items()})

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """As `WholeWeights.load_state_dict`."""
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        found: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            number, entry = name.split("/")
            weight = weights[int(number)]
            found.setdefault(int(number), {})[entry] = _like(value, weight) if value.ndim else value
        self.optimizer.load_state_dict({"state": found, "param_groups": self.optimizer.state_dict()["param_groups"]})


def _like(value: Tensor, own: Tensor | None) -> Tensor:
    """The part of a whole tensor that a process has of its own one."""
    if own is not None and value.shape != own.shape:
        raise ValueError(f"a tensor of the shape {tuple(value.shape)} for a weight of {tuple(own.shape)}")
    if not isinstance(own, DTensor):
        return value
    mesh = own.device_mesh
    # every process read the same file: nothing has to be sent
    return distribute_tensor(value.to(mesh.device_type), mesh, own.placements, src_data_rank=None)
