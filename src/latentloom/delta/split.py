"""Which pairs train, validate and test: base prompts that are the same but for spelling stay on one side."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import normalise
from latentloom.errors import ConfigError


@dataclass(frozen=True)
class Split:
    """Row numbers of a cache, in ascending order; together all rows, each once."""

    train: list[int]
    validation: list[int]
    test: list[int]

    @classmethod
    def of(cls, cache: PairEmbeddings, val_frac: float, test_frac: float, seed: int) -> "Split":
        """Draw the split of a cache; base prompts are the groups, or single pairs where the cache has no texts.

        Raises:
            ConfigError: shares that leave a part of training or validation empty.
        """
        names: Sequence[object] = range(len(cache))
        if cache.pairs is not None:
            names = [normalise(pair.base) for pair in cache.pairs]
        groups: dict[object, list[int]] = {}
        for row, name in enumerate(names):
            groups.setdefault(name, []).append(row)
        order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = [list(groups.values())[index] for index in order]
        num_test, num_validation = round(test_frac * len(groups)), round(val_frac * len(groups))
        parts = (
            shuffled[:num_test],
            shuffled[num_test : num_test + num_validation],
            shuffled[num_test + num_validation :],
        )
        test, validation, train = (sorted(row for group in part for row in group) for part in parts)
        if len(train) < 2 or not validation:
            raise ConfigError(
                f"{len(cache)} pairs with val_frac={val_frac} and test_frac={test_frac} leave {len(train)} to train on "
                f"and {len(validation)} to validate with; give more pairs or other shares"
            )
        return cls(train, validation, test)
