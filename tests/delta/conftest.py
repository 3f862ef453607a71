"""Random adapters and prompts for the tests of this folder; session fixtures, so that hypothesis takes them too."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.tensors import TextEmbeddings

DIM = 24


def prompts(
    lengths: Sequence[int], dim: int = DIM, seed: int = 0, dtype: torch.dtype = torch.float32
) -> TextEmbeddings:
    tokens = torch.randn(sum(lengths), dim, generator=torch.Generator().manual_seed(seed))
    return TextEmbeddings(tokens.to(dtype), torch.tensor(list(lengths), dtype=torch.long))


def adapter(seed: int = 0, size: float = 1.0, **config: Any) -> EmbeddingDelta:
    made = EmbeddingDelta(DeltaConfig.model_validate({"d_model": DIM, "rank": 4, "gate_width": 5, **config}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.down.normal_(std=made.config.d_model**-0.5, generator=generator)
        made.up.normal_(std=size, generator=generator)
        made.bias.normal_(std=size, generator=generator)
        made.centre.normal_(std=0.1, generator=generator)
        if made.gate_net is not None:
            for parameter in made.gate_net.parameters():
                parameter.normal_(std=0.3, generator=generator)
            made.gate_net.mean.normal_(generator=generator)
            made.gate_net.deviation.uniform_(0.5, 2.0, generator=generator)
    return made.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def make_prompts() -> Callable[..., TextEmbeddings]:
    """Prompts of the given lengths: `make_prompts(lengths, dim=24, seed=0, dtype=float32)`."""
    return prompts


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., EmbeddingDelta]:
    """An adapter with random weights everywhere: `make_adapter(seed=0, size=1.0, **fields of DeltaConfig)`."""
    return adapter
