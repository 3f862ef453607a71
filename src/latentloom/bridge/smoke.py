"""A first look at whether a backbone works under a bridge: each direction once, with random vectors."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.checkpoint import DTYPES
from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.decoding import DecodingConfig, decode
from latentloom.bridge.model import LatentBridge
from latentloom.errors import CheckpointError
from latentloom.runs.processes import choose_device
from latentloom.tensors import SentenceVector

TEXTS = ("a small animal that lives in the water", "to move quickly", "the quality of being honest", "a sharp tool")
UNSTATED_DIM = 384

Result = TypeVar("Result")


@dataclass(frozen=True)
class SmokeStep:
    """One thing that was tried.

    Attributes:
        name: of it.
        result: shapes, a loss or a text, in words.
        seconds: it took.
    """

    name: str
    result: str
    seconds: float


def smoke(config: BridgeConfig) -> list[SmokeStep]:
    """What loading, each direction forward and backward, and decoding gave; nothing is trained.

    Args:
        config: the model, and the device and dtype of the training.

    Raises:
        FileError: the backbone is not on this machine, or is damaged.
        CheckpointError: a loss or a gradient is not finite.
    """
    steps: list[SmokeStep] = []

    def timed(name: str, work: Callable[[], Result], say: Callable[[Result], str]) -> Result:
        started = time.perf_counter()
        result = work()
        steps.append(SmokeStep(name, say(result), time.perf_counter() - started))
        return result

    device, dtype = choose_device(config.training.device), DTYPES[config.training.dtype]
    backbone = timed(
        "load",
        lambda: load_backbone(config.model, device=device, dtype=dtype),
        lambda loaded: f"{loaded.num_layers} layers of {loaded.hidden_size} channels, {loaded.vocab_size} words",
    )
    torch.manual_seed(config.training.seed)
    bridge = LatentBridge(backbone, config.model, config.model.latent_dim or UNSTATED_DIM)
    generator = torch.Generator().manual_seed(config.training.seed)
    vectors = torch.randn(len(TEXTS), bridge.latent_dim, generator=generator).to(device)
    ids = bridge.tokenize(TEXTS)
    timed(
        "latent to text",
        lambda: _backward(bridge, bridge.latent_prefix, bridge.token_losses(vectors, ids)[0].mean()),
        lambda loss: f"{tuple(vectors.shape)} to {sum(map(len, ids)) + len(ids)} targets, cross-entropy {loss:.3f}",
    )
    timed(
        "text to latent",
        lambda: _backward(bridge, bridge.text_to_latent, _squared_error(bridge, ids, vectors)),
        lambda loss: f"{len(ids)} texts to {tuple(vectors.shape)}, squared error {loss:.3f}",
    )
    one = SentenceVector(vectors[:1])
    timed("decode", lambda: decode(bridge, one, DecodingConfig(max_new_tokens=16))[0][0], repr)
    return steps


def _squared_error(bridge: LatentBridge, ids: list[list[int]], vectors: Tensor) -> Tensor:
    return (bridge.predict(bridge.pool(ids)) - vectors).square().mean()


def _backward(bridge: LatentBridge, part: nn.Module, loss: Tensor) -> float:
    """The loss, after its gradient reached every weight of the part that it trains."""
    bridge.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [weight.grad for weight in part.parameters()]
    if not all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients):
        raise CheckpointError(
            f"{bridge.backbone.name}: the loss is {loss.item():.3g} and its gradient is not finite; try "
            "training.dtype=fp32, and whether the weights are whole"
        )
    return loss.item()
