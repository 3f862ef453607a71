"""One vector per prompt: the mean of its tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.tensors import TextEmbeddings


def pool(embeddings: TextEmbeddings) -> Float[Tensor, "B D"]:
    """The mean token of each prompt in float32; zeros for a prompt without tokens."""
    return mean_per_prompt(embeddings.tokens.float(), embeddings)


def mean_per_prompt(values: Float[Tensor, "N C"], embeddings: TextEmbeddings) -> Float[Tensor, "B C"]:
    """The mean over each prompt's tokens of values that belong to the tokens of `embeddings`."""
    owners = torch.repeat_interleave(torch.arange(len(embeddings), device=values.device), embeddings.lengths)
    sums = values.new_zeros(len(embeddings), values.shape[1]).index_add(0, owners, values)
    return sums / embeddings.lengths.clamp_min(1).unsqueeze(1)
