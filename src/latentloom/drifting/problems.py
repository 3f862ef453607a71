"""Drifting problems of equal dimension, stacked: distances, scales, forces and fields of many features in few calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Reduce = Callable[[Tensor], None]
Forces = Callable[..., Tensor]

LEAST_SQUARED_DISTANCE = 1e-8
LEAST_SCALE = 1e-3
LEAST_AFFINITY = 1e-6  # before the square root
LEAST_FORCE_NORM = 1e-8
SELF_DISTANCE = 100.0  # added to a sample's distance from itself, in mean distances
#: Affinities that are computed at a time, so that they stay in the processor's cache.
CELLS_AT_ONCE = 1 << 18


@dataclass(frozen=True, eq=False)
class Problems:
    """M problems: for each feature in turn, for each class, for each location.

    Attributes:
        targets: what queries are held against, in the order [gen | neg | pos], relative to a centre per problem.
        num_gen, num_neg: how many of the targets are generated samples (the queries too) and extra negatives.
        feature: which feature a problem is of; features do not share scales.
        features: classes and locations of each feature; their product is its number of problems.
        weights: of targets; 1 where None.
        valid: which targets exist; all where None.
    """

    targets: Float[Tensor, "M T S"]
    num_gen: int
    num_neg: int
    feature: Int[Tensor, "M"]
    features: list[tuple[int, int]]
    weights: Float[Tensor, "M T"] | None
    valid: Bool[Tensor, "M T"] | None

    @classmethod
    def of(
        cls,
        gen: Sequence[Float[Tensor, "C G _ S"]],
        neg: Sequence[Float[Tensor, "C U _ S"]],
        pos: Sequence[Float[Tensor, "C P _ S"]],
        weights: Float[Tensor, "C T"] | None,
        valid: Bool[Tensor, "C T"] | None,
    ) -> "Problems":
        """Stack features, given as [class, sample, location, channel]; weights and valid targets are by class."""
        num_gen, num_neg, num_pos = gen[0].shape[1], neg[0].shape[1], pos[0].shape[1]
        features = [(feature.shape[0], feature.shape[2]) for feature in gen]
        sizes = [num_classes * num_locations for num_classes, num_locations in features]
        dtype = torch.float64 if gen[0].dtype == torch.float64 else torch.float32
        targets = gen[0].new_empty(sum(sizes), num_gen + num_neg + num_pos, gen[0].shape[-1], dtype=dtype)
        for place, (num_classes, num_locations), *samples in zip(
            targets.split(sizes), features, gen, neg, pos, strict=True
        ):
            _fill(place.unflatten(0, (num_classes, num_locations)), samples, valid)
        device = targets.device
        feature = torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device))
        return cls(
            targets, num_gen, num_neg, feature, features, _by_problem(weights, features), _by_problem(valid, features)
        )

    @property
    def width(self) -> int:
        """Channels S."""
        return self.targets.shape[-1]

    def distances(self) -> Float[Tensor, "M G T"]:
        """Euclidean distances of the queries from the targets, by one matrix product."""
        queries = self.targets[:, : self.num_gen]
        squares = torch.linalg.vector_norm(self.targets, dim=-1).square_()
        sums = squares[:, : self.num_gen, None] + squares[:, None, :]
        distances = torch.baddbmm(sums, queries, self.targets.mT, alpha=-2)
        distances.diagonal(dim1=1, dim2=2).zero_()  # a query is a target too, and rounding must not part the two
        return distances.clamp_min_(LEAST_SQUARED_DISTANCE).sqrt_()

    def distance_sums(self, distances: Float[Tensor, "M G T"]) -> Float[Tensor, "2 F"]:
        """Per feature the sums of weighted distances and of weights over all pairs that exist."""
        weights = distances.new_ones(distances[:, 0].shape) if self.weights is None else self.weights
        if self.valid is None:
            weighted, weight = (distances.sum(1) * weights).sum(1), weights.sum(1) * self.num_gen
        else:
            weights, rows = weights * self.valid, self.valid[:, : self.num_gen]
            weighted = ((distances * rows[:, :, None]).sum(1) * weights).sum(1)
            weight = weights.sum(1) * rows.sum(1)
        return torch.stack([self._by_feature(weighted), self._by_feature(weight)])

    def forces(
        self,
        distances: Float[Tensor, "M G T"],
        scales: Float[Tensor, "F"],
        temperatures: Float[Tensor, "R"],
        kernel: Forces,
    ) -> Float[Tensor, "M R G S"]:
        """The raw forces at each temperature in scaled coordinates; `kernel` is `coefficients` or compiled from it."""
        inverse_scales = (1 / scales.clamp_min(LEAST_SCALE))[self.feature]
        inverse_sigmas = (1 / self.sigmas(scales))[self.feature]
        num_problems, num_gen, num_targets = distances.shape
        forces = distances.new_empty(num_problems, len(temperatures), num_gen, self.width)
        step = max(1, CELLS_AT_ONCE // (len(temperatures) * num_gen * num_targets))
        for start in range(0, num_problems, step):
            part = slice(start, start + step)
            pulls = kernel(
                distances[part] * inverse_scales[part, None, None],
                temperatures,
                self.num_gen + self.num_neg,
                None if self.weights is None else self.weights[part],
                None if self.valid is None else self.valid[part],
            )
            pulls *= inverse_sigmas[part, None, None, None]
            torch.bmm(pulls.flatten(1, 2), self.targets[part], out=forces[part].flatten(1, 2))
        return forces

    def force_sums(self, forces: Float[Tensor, "M R G S"]) -> Float[Tensor, "_ F"]:
        """Per feature the sums of squared forces at each of R temperatures, and, in row R, of how many numbers."""
        squares = torch.linalg.vector_norm(forces, dim=(2, 3)).square_()
        if self.valid is None:
            rows = squares.new_full((len(squares),), self.num_gen)
        else:
            rows = self.valid[:, : self.num_gen].sum(1).to(squares.dtype)
        return torch.stack([self._by_feature(column) for column in (*squares.unbind(1), rows * self.width)])

    def fields(self, forces: Float[Tensor, "M R G S"], norms: Float[Tensor, "R F"]) -> Float[Tensor, "M G S"]:
        """The sum over temperatures of forces divided by the roots of their norms."""
        factors = norms.clamp_min(LEAST_FORCE_NORM).rsqrt().mT[self.feature]
        return torch.bmm(factors.unsqueeze(1), forces.flatten(2)).view(-1, self.num_gen, self.width)

    def losses(self, fields: Float[Tensor, "M G S"]) -> list[Float[Tensor, "C"]]:
        """For every feature the mean square of the field by class; rows that do not exist are not counted."""
        squares = torch.linalg.vector_norm(fields, dim=(1, 2)).square_() / (self._num_rows() * self.width)
        return [part.unflatten(0, shape).mean(1) for part, shape in self._parts(squares)]

    def gradients(self, fields: Float[Tensor, "M G S"], scales: Float[Tensor, "F"]) -> list[Float[Tensor, "C G _ S"]]:
        """For every feature the derivative of its classes' losses with respect to its generated samples."""
        num_locations = fields.new_tensor([locations for _, locations in self.features])
        factors = -2 / (self.sigmas(scales) * num_locations * self.width)
        factors = factors[self.feature] / self._num_rows()
        return [
            part.unflatten(0, shape).transpose(1, 2) for part, shape in self._parts(fields * factors[:, None, None])
        ]

    def sigmas(self, scales: Float[Tensor, "F"]) -> Float[Tensor, "F"]:
        """What the coordinates are divided by."""
        return (scales / self.width**0.5).clamp_min(LEAST_SCALE)

    def _num_rows(self) -> Tensor | int:
        return self.num_gen if self.valid is None else self.valid[:, : self.num_gen].sum(1).clamp_min(1)

    def _by_feature(self, values: Float[Tensor, "M"]) -> Float[Tensor, "F"]:
        return values.new_zeros(len(self.features)).index_add_(0, self.feature, values)

    def _parts(self, values: Tensor) -> list[tuple[Tensor, tuple[int, int]]]:
        sizes = [num_classes * num_locations for num_classes, num_locations in self.features]
        return list(zip(values.split(sizes), self.features, strict=True))


def coefficients(
    distances: Float[Tensor, "M G T"],
    temperatures: Float[Tensor, "R"],
    num_repelling: int,
    weights: Float[Tensor, "M T"] | None,
    valid: Bool[Tensor, "M T"] | None,
) -> Float[Tensor, "M R G T"]:
    """How strongly each target pulls (or, below 0, pushes) each query; a query's coefficients sum to 0.

    Args:
        distances: in mean distances.
        temperatures: of the kernel.
        num_repelling: the first targets repel: generated samples and extra negatives.
        weights, valid: of the targets.
    """
    num_gen = distances.shape[1]
    distances.diagonal(dim1=1, dim2=2).add_(SELF_DISTANCE)
    logits = distances.unsqueeze(1) * (-1 / temperatures)[:, None, None]
    pairs = None
    if valid is not None:
        pairs = (valid[:, :num_gen, None] & valid[:, None, :]).unsqueeze(1)
        logits.masked_fill_(~pairs, -torch.inf)
    affinities = logits.softmax(-1).mul_(logits.softmax(-2)).clamp_min_(LEAST_AFFINITY).sqrt_()
    if pairs is not None:
        affinities.masked_fill_(~pairs, 0)  # a row or column of nothing but -inf has become NaN
    if weights is not None:
        affinities *= weights[:, None, None, :]
    repelling, attracting = affinities[..., :num_repelling], affinities[..., num_repelling:]
    repulsion, attraction = repelling.sum(-1, keepdim=True), attracting.sum(-1, keepdim=True)
    attracting *= repulsion
    repelling *= -attraction
    return affinities


def _fill(place: Float[Tensor, "C L T S"], samples: Sequence[Tensor], valid: Bool[Tensor, "C T"] | None) -> None:
    """Put [gen | neg | pos] into `place`, minus the mean of gen: far from the origin, float32 has few digits left."""
    counts = [part.shape[1] for part in samples]
    gen = samples[0].transpose(1, 2).to(place.dtype)
    if valid is None:
        centre = gen.mean(2, keepdim=True)
    else:
        rows = valid[:, None, : counts[0], None]
        centre = gen.masked_fill(~rows, 0).sum(2, keepdim=True) / rows.sum(2, keepdim=True).clamp_min(1)
    for part, slot in zip(samples, place.split(counts, dim=2), strict=True):
        torch.sub(part.transpose(1, 2), centre, out=slot)
    if valid is not None:
        place.masked_fill_(~valid[:, None, :, None], 0)


def _by_problem(values: Tensor | None, features: Sequence[tuple[int, int]]) -> Tensor | None:
    if values is None:
        return None
    return torch.cat([values.repeat_interleave(num_locations, dim=0) for _, num_locations in features])
