"""What is trained between sentence vectors and a backbone: a prefix one way, a head the other way."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Standardizer(nn.Module):
    """Brings every channel to mean 0 and deviation 1, and back, by what the training set has.

    Args:
        dim: channels.

    Attributes:
        mean, std: of the training set; 0 and 1 until they are fitted.
    """

    mean: Float[Tensor, "D"]
    std: Float[Tensor, "D"]

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    @property
    def is_fitted(self) -> bool:
        """Whether it has a training set's mean and deviation."""
        return bool((self.mean != 0).any() or (self.std != 1).any())

    def fit(self, mean: Float[Tensor, "D"], std: Float[Tensor, "D"]) -> None:
        """Take these as the training set's; a channel that never changes is left at its scale."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-8, std, torch.ones_like(std)))

    def forward(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        return (values.float() - self.mean) / self.std

    def inverse(self, values: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Standardised values at the scale of the training set."""
        return values * self.std + self.mean


class LatentPrefix(nn.Module):
    """A vector as a few input embeddings, at the size of the backbone's own.

    Each embedding is brought to the root mean square of the backbone's embeddings times a learned factor that starts
    at 1. An output layer that starts at zero would divide by nothing there, and its gradient, multiplied in every
    norm of the backbone, is NaN.

    Args:
        dim: channels of a vector, D.
        hidden: width of the hidden layer.
        num_tokens: embeddings made, P.
        width: the backbone's channels, H.
        embedding_rms: root mean square of its embeddings.
    """

    embedding_rms: Float[Tensor, ""]

    def __init__(self, dim: int, hidden: int, num_tokens: int, width: int, embedding_rms: float) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.project = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, num_tokens * width))
        self.log_scale = nn.Parameter(torch.zeros(num_tokens, 1))
        self.register_buffer("embedding_rms", torch.tensor(embedding_rms))

    def forward(self, standardized: Float[Tensor, "B D"]) -> Float[Tensor, "B P H"]:
        embeddings = self.project(standardized).unflatten(1, (self.num_tokens, -1))
        size = embeddings.square().mean(-1, keepdim=True).add(1e-12).sqrt()
        return embeddings / size * (self.embedding_rms * self.log_scale.exp())


class TextToLatent(nn.Module):
    """Pooled states of a text as the standardised vector of its sentence: a linear map and a network beside it.

    Args:
        num_features: pooled channels, F.
        hidden: width of the network.
        dim: channels of a vector, D.
        dropout: share of features, and of hidden channels, that are left out in training.
    """

    def __init__(self, num_features: int, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.features = Standardizer(num_features)
        self.hidden = nn.Linear(num_features, hidden)
        self.output = nn.Linear(hidden, dim)

    def forward(
        self, pooled: Float[Tensor, "B F"], kept: tuple[Bool[Tensor, "B F"], Bool[Tensor, "B h"]] | None = None
    ) -> Float[Tensor, "B D"]:
        """Standardised vectors.

        Args:
            pooled: features of each text.
            kept: in training, which features and hidden channels dropout leaves; None keeps all.
        """
        values = self.features(pooled)
        if kept is not None:
            values = values * kept[0] / (1 - self.dropout)
        values = nn.functional.gelu(self.hidden(values))
        if kept is not None:
            values = values * kept[1] / (1 - self.dropout)
        return self.output(values)

    def draw_kept(self, num: int, generator: torch.Generator) -> tuple[Bool[Tensor, "B F"], Bool[Tensor, "B h"]] | None:
        """What dropout keeps for a batch, on the CPU, so that each process can take its rows; None without dropout."""
        if not self.dropout:
            return None
        widths = (self.hidden.in_features, self.hidden.out_features)
        features, hidden = (torch.rand(num, width, generator=generator) >= self.dropout for width in widths)
        return features, hidden


def default_layers(num_layers: int) -> Sequence[int]:
    """Layers whose states are pooled where none are named: from the first, which still tells the words, to the last.

    On SmolLM2 the first two of these six lift ridge regression from 0.94 to 0.97 in R@1 (docs/experiments/bridge.md).
    """
    return sorted({max(1, round(num_layers * share)) for share in (1 / 30, 1 / 6, 1 / 3, 8 / 15, 11 / 15, 1)})
