"""What a bridge has to beat: the nearest training text, ridge regression, other texts' vectors."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.errors import ShapeError

#: Penalties that are tried, as multiples of the number of training texts: features are standardised.
RIDGE_PENALTIES = tuple(10.0**power for power in (-4, -3, -2, -1, 0, 1))
_VALIDATION_SHARE = 0.2


def nearest_rows(vectors: Float[Tensor, "N D"], training: Iterable[Float[Tensor, "_ D"]]) -> Int64[Tensor, "N"]:
    """For each vector, the row of the training vector with the largest cosine to it; the first of equal ones.

    Args:
        vectors: of held-out texts.
        training: a part of the training vectors after the other, which together need not fit into memory.

    Raises:
        ShapeError: no training vector.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    best = torch.full((len(vectors),), -torch.inf, device=vectors.device)
    rows = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    start = 0
    for part in training:
        found, where = (unit @ torch.nn.functional.normalize(part.to(unit), dim=1).T).max(dim=1)
        rows = torch.where(found > best, where + start, rows)
        best = torch.maximum(found, best)
        start += len(part)
    if not start:
        raise ShapeError("no training vector to look among; give at least one")
    return rows


def derangement(num_rows: int, generator: torch.Generator) -> Int64[Tensor, "N"]:
    """A random order in which no row is at its own place: every text with the vector of another.

    Args:
        num_rows: at least two.
        generator: on the CPU.

    Raises:
        ShapeError: fewer than two rows.

    Source: Sattolo 1986: a cycle through all rows.
    """
    if num_rows < 2:
        raise ShapeError(f"{num_rows} rows cannot change places; give at least two")
    order = torch.randperm(num_rows, generator=generator)
    shuffled = torch.empty_like(order)
    shuffled[order] = order.roll(-1)
    return shuffled


@dataclass(frozen=True, eq=False)
class Ridge:
    """A linear map from standardised features to vectors.

    Attributes:
        mean, std: of the training features.
        weight: of standardised features.
        bias: the mean training vector.
        penalty: the squared weight's factor.
    """

    mean: Float[Tensor, "F"]
    std: Float[Tensor, "F"]
    weight: Float[Tensor, "F D"]
    bias: Float[Tensor, "D"]
    penalty: float

    def predict(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        """Vectors of texts whose features these are, in float32."""
        standard = (features.double() - self.mean) / self.std
        return (standard @ self.weight + self.bias).float()


def fit_ridge(
    features: Float[Tensor, "M F"],
    vectors: Float[Tensor, "M D"],
    generator: torch.Generator,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> Ridge:
    """Ridge regression of training vectors on training features, in closed form and float64.

    The penalty is the one that predicts a fifth of the training texts best from the others; all of them are used then.

    Args:
        features: of M training texts, at least two.
        vectors: theirs.
        generator: of that fifth.
        penalties: tried, as multiples of the number of texts; a single one is taken without trying.

    Raises:
        ShapeError: fewer than two texts, or not as many of both.
    """
    if len(features) != len(vectors) or len(features) < 2:
        raise ShapeError(f"{len(features)} features and {len(vectors)} vectors; give as many of both, at least two")
    features, vectors = features.double(), vectors.double()
    order = torch.randperm(len(features), generator=generator)
    num_out = max(1, round(_VALIDATION_SHARE * len(order)))
    out, rest = order[:num_out], order[num_out:]
    chosen = penalties[0]
    if len(penalties) > 1:
        candidates = _solve(features[rest], vectors[rest], penalties)
        errors = [(ridge.predict(features[out]) - vectors[out]).square().mean().item() for ridge in candidates]
        chosen = penalties[int(np.argmin(errors))]
    return _solve(features, vectors, [chosen])[0]


def _solve(features: Tensor, vectors: Tensor, penalties: Sequence[float]) -> list[Ridge]:
    """Solutions for penalties relative to the number of rows; the smaller of the two Gram matrices is decomposed."""
    mean, bias = features.mean(dim=0), vectors.mean(dim=0)
    std = features.std(dim=0, correction=0)
    std = torch.where(std > 1e-8, std, torch.ones_like(std))
    inputs, targets = (features - mean) / std, vectors - bias
    num_rows, num_features = inputs.shape
    is_wide = num_features > num_rows
    values, basis = torch.linalg.eigh(inputs @ inputs.T if is_wide else inputs.T @ inputs)
    values = values.clamp_min(0)  # rounding makes zeros slightly negative
    projected = basis.T @ (targets if is_wide else inputs.T @ targets)
    found = []
    for penalty in penalties:
        solution = basis @ (projected / (values + penalty * num_rows)[:, None])
        weight = inputs.T @ solution if is_wide else solution
        found.append(Ridge(mean, std, weight, bias, penalty * num_rows))
    return found
