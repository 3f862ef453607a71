"""Random embeddings for the tests of operations on them."""

from collections.abc import Sequence

import torch

from latentloom.tensors import TextEmbeddings


def random_prompts(
    lengths: Sequence[int], seed: int = 0, dim: int = 6, dtype: torch.dtype = torch.float32
) -> TextEmbeddings:
    """Normally distributed tokens; any seed gives the same ones each time."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), dim, generator=generator)
    return TextEmbeddings(tokens.to(dtype), torch.tensor(lengths))


def tokens_of(*rows: Sequence[float]) -> TextEmbeddings:
    """One prompt of these tokens."""
    return TextEmbeddings.from_list([torch.tensor(rows)])


def token_norms(embeddings: TextEmbeddings) -> list[float]:
    return embeddings.tokens.float().norm(dim=1).tolist()
