"""Prompts in a few families by what they say, each named by the words that tell it from the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.representation.kmeans import fit_kmeans
from latentloom.errors import ShapeError

MAX_FAMILIES = 8
NUM_WORDS = 3


@dataclass(frozen=True, eq=False)
class Families:
    """Groups of prompts, the largest first.

    Attributes:
        labels: family of each prompt.
        names: by family, its most distinctive words.
    """

    labels: Int64[Tensor, "N"]
    names: tuple[str, ...]


def prompt_families(
    texts: Float[Tensor, "N E"], prompts: Sequence[str], *, max_families: int = MAX_FAMILIES, seed: int = 0
) -> Families:
    """Families of prompts: k-means of their pooled embeddings, standardised by channel.

    A word is distinctive for a family if many of its prompts have it and few others do: the share of its prompts that
    have it, times the logarithm of that share over the share of all prompts that do. English stop words are left out.

    Args:
        texts: mean of each prompt's tokens.
        prompts: the same prompts as words.
        max_families: at most so many, or as many as there are different prompts.
        seed: of k-means.

    Raises:
        ShapeError: not one text per prompt, or none.
    """
    if len(texts) != len(prompts) or not len(prompts):
        raise ShapeError(f"{len(texts)} texts for {len(prompts)} prompts; give one each, at least one")
    texts = texts.float()
    spread = texts.std(dim=0, correction=0)
    channels = texts[:, spread > 0] / spread[spread > 0] if bool((spread > 0).any()) else texts
    number = min(max_families, len(set(prompts)))
    labels = fit_kmeans(channels, number, seed=seed).labels
    order = torch.bincount(labels, minlength=number).argsort(descending=True, stable=True)
    order = order[torch.bincount(labels, minlength=number)[order] > 0]
    rank = torch.zeros(number, dtype=torch.int64)
    rank[order] = torch.arange(len(order))
    labels = rank[labels]
    return Families(labels, _names(labels, prompts, len(order)))


def _names(labels: Int64[Tensor, "N"], prompts: Sequence[str], number: int) -> tuple[str, ...]:
    from scipy.sparse import csr_array  # both take seconds to import
    from sklearn.feature_extraction.text import CountVectorizer

    counter = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b", stop_words="english")
    if not any(counter.build_analyzer()(prompt) for prompt in prompts):
        return tuple(f"family {index + 1}" for index in range(number))
    has_word = torch.from_numpy(np.asarray(csr_array(counter.fit_transform(prompts)).todense())).double()
    words = counter.get_feature_names_out()
    overall = has_word.mean(dim=0)
    names = []
    for family in range(number):
        share = has_word[labels == family].mean(dim=0)
        score = torch.where(share > 0, share * (share.clamp_min(1e-12) / overall).log(), 0.0)
        best = score.topk(min(NUM_WORDS, len(words)))
        named = [str(words[place]) for value, place in zip(*map(Tensor.tolist, best), strict=True) if value > 0]
        names.append(" ".join(named) or f"family {family + 1}")
    return tuple(names)
