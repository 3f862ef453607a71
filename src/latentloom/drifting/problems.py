"""Drifting problems of equal dimension, stacked: distances, scales, forces and fields of many features in few calls."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Reduce = Callable[[Tensor], None]
Kernel = Callable[..., Tensor]

LEAST_SQUARED_DISTANCE = 1e-8
LEAST_SCALE = 1e-3
LEAST_AFFINITY = 1e-6  # before the square root
LEAST_FORCE_NORM = 1e-8
SELF_DISTANCE = 100.0  # added to a sample's distance from itself, in mean distances
#: Classes are taken in parts whose targets have about this size, so that they stay in the processor's cache while
#: they are worked on; on an accelerator, parts only bound the memory.
BYTES_AT_ONCE = {"cpu": 1 << 24, "cuda": 1 << 28}


class Problems:
    """A problem for every class and every location of some features, which all have vectors of S channels.

    Queries are the generated samples; targets are the generated samples, the extra negatives and the positives, in
    this order, T = G+U+P. Below, L counts the locations of all features together.

    Args:
        gen, neg, pos: per feature the samples as [class, sample, location, channel].
        weights: of targets; 1 where None.
        valid: which targets exist; all where None.

    Attributes:
        locations: of each of the F features.
        feature: which feature a location is of.
    """

    def __init__(
        self,
        gen: Sequence[Float[Tensor, "C G _ S"]],
        neg: Sequence[Float[Tensor, "C U _ S"]],
        pos: Sequence[Float[Tensor, "C P _ S"]],
        weights: Float[Tensor, "C T"] | None,
        valid: Bool[Tensor, "C T"] | None,
    ) -> None:
        self._samples = (gen, neg, pos)
        self.weights = weights
        self.valid = valid
        self.num_classes, self.num_gen = gen[0].shape[:2]
        self.num_repelling = self.num_gen + neg[0].shape[1]
        self.num_targets = self.num_repelling + pos[0].shape[1]
        self.width = gen[0].shape[-1]
        self.dtype = torch.float64 if gen[0].dtype == torch.float64 else torch.float32
        self.device = gen[0].device
        self.locations = [feature.shape[2] for feature in gen]
        numbers = [number for number, count in enumerate(self.locations) for _ in range(count)]
        self.feature = torch.tensor(numbers, device=self.device)
        self._of_feature = F.one_hot(self.feature, len(gen)).to(self.dtype).mT  # adds locations up by feature
        self._num_locations = torch.tensor(self.locations, dtype=self.dtype, device=self.device)
        if valid is None:
            self._num_rows = torch.full((self.num_classes,), self.num_gen, dtype=self.dtype, device=self.device)
        else:
            self._num_rows = valid[:, : self.num_gen].sum(1).to(self.dtype)
        self._num_numbers = self._num_rows.clamp_min(1) * self.width
        per_class = len(numbers) * self.num_targets * self.width * self.dtype.itemsize
        step = max(1, BYTES_AT_ONCE[self.device.type] // per_class)
        self._parts = [slice(start, start + step) for start in range(0, self.num_classes, step)]
        self._kept: Tensor | None = None

    def distances(self) -> Float[Tensor, "C L G T"]:
        """Euclidean distances of the queries from the targets, by matrix products."""
        distances = self._new(self.num_gen, self.num_targets)
        for part, targets in self._targets():
            rows = targets.flatten(0, 1)
            squares = torch.linalg.vector_norm(rows, dim=-1).square_()
            sums = squares[:, : self.num_gen, None] + squares[:, None, :]
            place = distances[part].flatten(0, 1)
            torch.baddbmm(sums, rows[:, : self.num_gen], rows.mT, alpha=-2, out=place)
            place.diagonal(dim1=1, dim2=2).zero_()  # rounding must not part a query from itself
            place.clamp_min_(LEAST_SQUARED_DISTANCE).sqrt_()
        return distances

    def distance_sums(self, distances: Float[Tensor, "C L G T"]) -> Float[Tensor, "2 F"]:
        """Per feature the sums of weighted distances and of weights over all pairs that exist."""
        weights = distances.new_ones(self.num_classes, self.num_targets) if self.weights is None else self.weights
        weights = weights if self.valid is None else weights * self.valid
        rows = torch.bmm(distances.flatten(1, 2), weights.unsqueeze(2)).view(distances.shape[:3])
        if self.valid is not None:
            rows = rows * self.valid[:, None, : self.num_gen]
        weight = (weights.sum(1) * self._num_rows).sum()
        return torch.stack([self._of_feature @ rows.sum((0, 2)), self._num_locations * weight])

    def forces(
        self,
        distances: Float[Tensor, "C L G T"],
        scales: Float[Tensor, "F"],
        temperatures: Float[Tensor, "R"],
        kernel: Kernel,
    ) -> Float[Tensor, "C L R G S"]:
        """The raw forces at each temperature, not yet divided by sigma; `kernel` is `coefficients`, maybe compiled."""
        sharpness = -1 / (scales.clamp_min(LEAST_SCALE)[self.feature, None] * temperatures)
        forces = self._new(len(temperatures), self.num_gen, self.width)
        for part, targets in self._targets():
            pulls = kernel(
                distances[part],
                sharpness,
                temperatures,
                self.num_repelling,
                None if self.weights is None else self.weights[part],
                None if self.valid is None else self.valid[part],
            )
            torch.bmm(
                pulls.flatten(2, 3).flatten(0, 1), targets.flatten(0, 1), out=forces[part].flatten(2, 3).flatten(0, 1)
            )
        self._kept = None
        return forces

    def force_sums(self, forces: Float[Tensor, "C L R G S"], scales: Float[Tensor, "F"]) -> Float[Tensor, "_ F"]:
        """Per feature the sums of squared forces at each of R temperatures, and, in row R, of how many numbers."""
        squares = torch.linalg.vector_norm(forces.flatten(3), dim=3).square_().sum(0)
        sums = (self._of_feature @ squares) / self.sigmas(scales).square()[:, None]
        return torch.cat([sums.mT, (self._num_locations * self._num_rows.sum() * self.width)[None]])

    def fields(
        self, forces: Float[Tensor, "C L R G S"], scales: Float[Tensor, "F"], norms: Float[Tensor, "R F"]
    ) -> Float[Tensor, "C L G S"]:
        """The sum over temperatures of forces in scaled coordinates, divided by the roots of their norms."""
        factors = (norms.clamp_min(LEAST_FORCE_NORM).rsqrt() / self.sigmas(scales)).mT[self.feature]
        rows = factors.expand(self.num_classes, -1, -1).flatten(0, 1).unsqueeze(1)
        return torch.bmm(rows, forces.flatten(3).flatten(0, 1)).view(*forces.shape[:2], self.num_gen, self.width)

    def losses(self, fields: Float[Tensor, "C L G S"]) -> Float[Tensor, "F C"]:
        """The mean square of the field by feature and class; rows that do not exist are not counted."""
        squares = torch.linalg.vector_norm(fields.flatten(2), dim=2).square_()
        return (self._of_feature @ squares.mT) / (self._num_locations[:, None] * self._num_numbers)

    def descents(self, scales: Float[Tensor, "F"]) -> Float[Tensor, "C L"]:
        """What the field is multiplied by to be the derivative of a class's loss of a feature."""
        factors = -2 / (self.sigmas(scales) * self._num_locations)
        return factors[self.feature] / self._num_numbers[:, None]

    def sigmas(self, scales: Float[Tensor, "F"]) -> Float[Tensor, "F"]:
        """What the coordinates are divided by."""
        return (scales / self.width**0.5).clamp_min(LEAST_SCALE)

    def _targets(self) -> Iterator[tuple[slice, Float[Tensor, "_ L T S"]]]:
        """The targets of some classes at a time, minus a centre per problem, in memory that the next part reuses."""
        if self._kept is not None:
            yield self._parts[0], self._kept
            return
        size = min(self._parts[0].stop, self.num_classes)
        place = self._new(self.num_targets, self.width, num_classes=size)
        for part in self._parts:
            targets = place[: min(part.stop, self.num_classes) - part.start]
            self._fill(targets, part)
            yield part, targets
        if len(self._parts) == 1:
            self._kept = place

    def _fill(self, place: Float[Tensor, "c L T S"], part: slice) -> None:
        # far from the origin float32 has few digits left for differences, so a centre is taken off on the way
        slots = place.tensor_split([self.num_gen, self.num_repelling], dim=2)
        by_feature = zip(*(slot.split(self.locations, dim=1) for slot in slots), strict=True)
        valid = None if self.valid is None else self.valid[part, None, :, None]
        for slot, samples in zip(by_feature, zip(*self._samples, strict=True), strict=True):
            centre = self._centre(samples[0][part].transpose(1, 2), valid)
            for target, source in zip(slot, samples, strict=True):
                torch.sub(source[part].transpose(1, 2), centre, out=target)
        if valid is not None:
            place.masked_fill_(~valid, 0)

    def _centre(self, gen: Float[Tensor, "c l G S"], valid: Bool[Tensor, "c 1 T 1"] | None) -> Float[Tensor, "c l 1 S"]:
        """The mean of the generated samples that exist."""
        gen = gen.to(self.dtype)
        if valid is None:
            return gen.mean(2, keepdim=True)
        rows = valid[:, :, : self.num_gen]
        return gen.masked_fill(~rows, 0).sum(2, keepdim=True) / rows.sum(2, keepdim=True).clamp_min(1)

    def _new(self, *shape: int, num_classes: int | None = None) -> Tensor:
        count = self.num_classes if num_classes is None else num_classes
        return torch.empty(count, len(self.feature), *shape, dtype=self.dtype, device=self.device)


def coefficients(
    distances: Float[Tensor, "C L G T"],
    sharpness: Float[Tensor, "L R"],
    temperatures: Float[Tensor, "R"],
    num_repelling: int,
    weights: Float[Tensor, "C T"] | None,
    valid: Bool[Tensor, "C T"] | None,
    *,
    masks_self: bool = True,
) -> Float[Tensor, "C L R G T"]:
    """How strongly each target pulls (or, below 0, pushes) each query; a query's coefficients sum to 0.

    Args:
        distances: of queries from targets; the first targets are the queries themselves.
        sharpness: what distances are multiplied by to be logits: -1 / (scale * temperature).
        temperatures: of the kernel.
        num_repelling: the first targets repel: generated samples and extra negatives.
        weights, valid: of the targets.
        masks_self: a query does not repel itself, as where real samples are drawn independently of it. Where each
            query's own real sample is among the positives, it must: else the field is not 0 where both are equal.
    """
    logits = distances.unsqueeze(2) * sharpness[:, :, None, None]
    if masks_self:
        logits.diagonal(dim1=3, dim2=4).sub_((SELF_DISTANCE / temperatures)[:, None])
    pairs = None
    if valid is not None:
        pairs = (valid[:, : distances.shape[2], None] & valid[:, None, :])[:, None, None]
        logits.masked_fill_(~pairs, -torch.inf)
    affinities = logits.softmax(-1).mul_(logits.softmax(-2)).clamp_min_(LEAST_AFFINITY).sqrt_()
    if pairs is not None:
        affinities.masked_fill_(~pairs, 0)  # a row or column of nothing but -inf has become NaN
    if weights is not None:
        affinities *= weights[:, None, None, None, :]
    repelling, attracting = affinities[..., :num_repelling], affinities[..., num_repelling:]
    repulsion, attraction = repelling.sum(-1, keepdim=True), attracting.sum(-1, keepdim=True)
    attracting *= repulsion
    repelling *= -attraction
    return affinities
