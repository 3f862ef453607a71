"""The drifting field: where generated samples should move, given real ones; and its loss with a closed-form gradient.

Source: Deng et al. 2026, "Generative Modeling via Drifting", and its official code (`drift_loss.py`), whose numbers
this follows to rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.drifting.problems import Kernel, Problems, Reduce, coefficients
from latentloom.errors import ConfigError, ShapeError


class Drift(NamedTuple):
    """The field of one call, in coordinates divided by sigma = max(scale / sqrt(S), 0.001).

    Attributes:
        field: V, the direction each generated sample should move in.
        scale: the mean weighted distance.
        force_norms: mean squares of the raw forces at each temperature, which V's parts are divided by.
    """

    field: Float[Tensor, "B G S"]
    scale: Float[Tensor, ""]
    force_norms: Float[Tensor, "R"]


def compute_drift(
    gen: Float[Tensor, "B G S"],
    pos: Float[Tensor, "B P S"],
    neg: Float[Tensor, "B U S"] | None = None,
    *,
    temperatures: Sequence[float],
    weight_gen: Float[Tensor, "B G"] | None = None,
    weight_pos: Float[Tensor, "B P"] | None = None,
    weight_neg: Float[Tensor, "B U"] | None = None,
    valid: Bool[Tensor, "B T"] | None = None,
) -> Drift:
    """The field of B problems (classes, locations) that share one scale and one force norm per temperature.

    Args:
        gen: G generated samples of S channels; each is a query, and a negative of the others.
        pos: P real samples, which attract.
        neg: U more samples, which repel.
        temperatures: R widths of the kernel, in mean distances.
        weight_gen, weight_pos, weight_neg: of targets, 0 or more; 1 where not given. They multiply affinities after
            both softmaxes, and count in the scale.
        valid: which targets exist, in the order [gen | neg | pos], T = G+U+P; all where None. What does not exist has
            a field of 0, and its values are never used.

    Raises:
        ShapeError: counts or dimensions that do not fit together, or nothing that attracts.
        ConfigError: no temperature, or one that is not above 0.
    """
    neg = gen[:, :0] if neg is None else neg
    weights = _target_weights(gen, neg, pos, weight_gen, weight_neg, weight_pos)
    _check([gen], [neg], [pos], temperatures, valid)
    with torch.no_grad(), torch.autocast(gen.device.type, enabled=False):
        problems = Problems([gen.unsqueeze(2)], [neg.unsqueeze(2)], [pos.unsqueeze(2)], weights, valid)
        (field,), (scales,), (norms,) = _fields([problems], temperatures)
    return Drift(field[:, 0], scales[0], norms[:, 0])


def drifting_loss(
    gen: Float[Tensor, "B G S"],
    pos: Float[Tensor, "B P S"],
    neg: Float[Tensor, "B U S"] | None = None,
    *,
    temperatures: Sequence[float],
    weight_gen: Float[Tensor, "B G"] | None = None,
    weight_pos: Float[Tensor, "B P"] | None = None,
    weight_neg: Float[Tensor, "B U"] | None = None,
    valid: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B"]:
    """The loss of each problem: the mean square of its field; descending its gradient moves `gen` along the field.

    Only `gen` gets a gradient, -2 V / (G S sigma): targets, scale and sigma are constants to it. Arguments and errors
    are those of `compute_drift`.
    """
    losses = drifting_losses(
        [gen.unsqueeze(2)],
        [pos.unsqueeze(2)],
        None if neg is None else [neg.unsqueeze(2)],
        temperatures=temperatures,
        weight_gen=weight_gen,
        weight_pos=weight_pos,
        weight_neg=weight_neg,
        valid=valid,
    )
    return losses[0]


def drifting_losses(
    gen: Sequence[Float[Tensor, "C G _ _"]],
    pos: Sequence[Float[Tensor, "C P _ _"]],
    neg: Sequence[Float[Tensor, "C U _ _"]] | None = None,
    *,
    temperatures: Sequence[float],
    weight_gen: Float[Tensor, "C G"] | None = None,
    weight_pos: Float[Tensor, "C P"] | None = None,
    weight_neg: Float[Tensor, "C U"] | None = None,
    valid: Bool[Tensor, "C T"] | None = None,
    reduce: Reduce | None = None,
    kernel: Kernel = coefficients,
) -> Float[Tensor, "F C"]:
    """The losses of F features of the same samples, by feature and class.

    A feature is one call of `compute_drift`: its classes and locations share scale and force norms, and its loss is
    the mean over its locations. Features of equal dimension are computed as one.

    Args:
        gen, pos, neg: per feature the samples of C classes, [class, sample, location, channel]; the numbers of
            locations and channels differ by feature.
        temperatures, weight_gen, weight_pos, weight_neg, valid: as of `compute_drift`, by class.
        reduce: adds a tensor up over processes, in place; scale and force norm are then of the classes of all.
        kernel: `coefficients`, or what torch.compile made of it.

    Raises:
        ShapeError, ConfigError: as `compute_drift`.
    """
    neg = [feature[:, :0] for feature in gen] if neg is None else neg
    weights = _target_weights(gen[0], neg[0], pos[0], weight_gen, weight_neg, weight_pos)
    _check(gen, neg, pos, temperatures, valid)
    by_width: dict[int, list[int]] = {}
    for number, feature in enumerate(gen):
        by_width.setdefault(feature.shape[-1], []).append(number)
    numbers = list(by_width.values())
    # mixed precision would round the distances to nothing
    with torch.no_grad(), torch.autocast(gen[0].device.type, enabled=False):
        stacks = []
        for own in numbers:
            samples = [[features[number] for number in own] for features in (gen, neg, pos)]
            stacks.append(Problems(samples[0], samples[1], samples[2], weights, valid))
        fields, scales, _ = _fields(stacks, temperatures, reduce, kernel)
        losses = torch.cat([stack.losses(field) for stack, field in zip(stacks, fields, strict=True)])
        order = torch.tensor([number for own in numbers for number in own], device=losses.device).argsort()
        places = [(own, stack.feature, stack.locations) for own, stack in zip(numbers, stacks, strict=True)]
        descents = [stack.descents(scale) for stack, scale in zip(stacks, scales, strict=True)]
    return _WithGradients.apply(losses[order], places, *gen, *fields, *descents)


def _fields(
    stacks: Sequence[Problems],
    temperatures: Sequence[float],
    reduce: Reduce | None = None,
    kernel: Kernel = coefficients,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per stack its fields [C, L, G, S], scales [F] and force norms [R, F]; processes talk only twice."""
    num_features = [len(stack.locations) for stack in stacks]
    widths = torch.tensor(temperatures, dtype=stacks[0].dtype, device=stacks[0].device)

    def means(sums: list[Tensor]) -> list[Tensor]:
        total = torch.cat(sums, dim=1)
        if reduce is not None:
            reduce(total)
        return list((total[:-1] / total[-1].clamp_min(torch.finfo(total.dtype).tiny)).split(num_features, dim=1))

    distances = [stack.distances() for stack in stacks]
    sums = [stack.distance_sums(distance) for stack, distance in zip(stacks, distances, strict=True)]
    scales = [mean[0] for mean in means(sums)]
    of_stacks = list(zip(stacks, scales, strict=True))
    forces = [
        stack.forces(distance, scale, widths, kernel)
        for (stack, scale), distance in zip(of_stacks, distances, strict=True)
    ]
    sums = [stack.force_sums(force, scale) for (stack, scale), force in zip(of_stacks, forces, strict=True)]
    norms = means(sums)
    fields = [
        stack.fields(force, scale, norm) for (stack, scale), force, norm in zip(of_stacks, forces, norms, strict=True)
    ]
    return fields, scales, norms


class _WithGradients(torch.autograd.Function):
    """Losses [F, C] whose gradient by the generated samples is a multiple of their fields."""

    @staticmethod
    def forward(ctx, losses: Tensor, places: list[tuple[list[int], Tensor, list[int]]], *tensors: Tensor) -> Tensor:
        """Keep what `backward` needs.

        Args:
            losses: as returned.
            places: of every stack the numbers of its features, the feature of each location, locations by feature.
            tensors: the generated samples of every feature; then of every stack its field [C, L, G, S]; then of every
                stack what the field is multiplied by [C, L].
        """
        ctx.places = places
        ctx.dtypes = [gen.dtype for gen in tensors[: len(losses)]]
        ctx.save_for_backward(*tensors[len(losses) :])
        return losses

    @staticmethod
    def backward(ctx, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        (factors,) = outputs
        fields, descents = ctx.saved_tensors[: len(ctx.places)], ctx.saved_tensors[len(ctx.places) :]
        gradients: list[Tensor | None] = [None] * len(ctx.dtypes)
        for (own, feature, locations), field, descent in zip(ctx.places, fields, descents, strict=True):
            multiples = factors[own][feature].mT * descent
            parts = (field * multiples[:, :, None, None]).split(locations, dim=1)
            for number, part in zip(own, parts, strict=True):
                gradients[number] = part.transpose(1, 2).to(ctx.dtypes[number])
        return None, None, *gradients, *([None] * (2 * len(fields)))


def _target_weights(
    gen: Tensor,
    neg: Tensor,
    pos: Tensor,
    weight_gen: Tensor | None,
    weight_neg: Tensor | None,
    weight_pos: Tensor | None,
) -> Float[Tensor, "C T"] | None:
    """Weights in the targets' order [gen | neg | pos]; None where all are 1."""
    given = (weight_gen, weight_neg, weight_pos)
    if all(weight is None for weight in given):
        return None
    dtype = torch.float64 if gen.dtype == torch.float64 else torch.float32
    parts = [
        samples.new_ones(samples.shape[:2], dtype=dtype) if weight is None else weight.to(dtype)
        for weight, samples in zip(given, (gen, neg, pos), strict=True)
    ]
    for name, weight, samples in zip(("gen", "neg", "pos"), parts, (gen, neg, pos), strict=True):
        if weight.shape != samples.shape[:2]:
            raise ShapeError(f"weight_{name} has the shape {tuple(weight.shape)}; give {tuple(samples.shape[:2])}")
    return torch.cat(parts, dim=1)


def _check(
    gen: Sequence[Tensor],
    neg: Sequence[Tensor],
    pos: Sequence[Tensor],
    temperatures: Sequence[float],
    valid: Tensor | None,
) -> None:
    if not temperatures or not all(0 < temperature < float("inf") for temperature in temperatures):
        raise ConfigError(f"temperatures {list(temperatures)}; give one or more numbers above 0")
    for samples in zip(gen, neg, pos, strict=True):
        shapes = [tuple(part.shape) for part in samples]
        if len({(shape[0], *shape[2:]) for shape in shapes}) != 1:
            raise ShapeError(f"gen, neg and pos of shapes {shapes}; only their second dimension, the count, may differ")
    num_targets = gen[0].shape[1] + neg[0].shape[1] + pos[0].shape[1]
    if pos[0].shape[1] == 0 or gen[0].shape[1] == 0:
        raise ShapeError(f"{gen[0].shape[1]} generated samples and {pos[0].shape[1]} positives; give at least one each")
    if valid is not None and valid.shape != (len(gen[0]), num_targets):
        raise ShapeError(f"valid has the shape {tuple(valid.shape)}; give {(len(gen[0]), num_targets)}: gen, neg, pos")
