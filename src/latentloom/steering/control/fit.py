"""Control vectors from recorded activations: pairs of prompts that differ in one concept, and nothing else.

P pairs, W windows of the sampling schedule, N blocks, D channels. Everything is computed in float32 and without chance.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.control.vector import WHOLE_SCHEDULE, ControlVector, Window
from latentloom.steering.plan import Site

METHODS = ("mean", "pca_pair", "pca_difference")
Centre = Literal["pair", "difference"]
_ROUNDING = 1e-12  # of a squared length in float32, relative: below it, pairs differ in the same


class PrincipalDirection(NamedTuple):
    """Directions from a principal component, and its share of the variance that it is the first component of."""

    directions: Float[Tensor, "W N D"]
    explained: Float[Tensor, "W N"]


class Separation(NamedTuple):
    """How far a direction tells the two sides of pairs apart, per window and block.

    pairs: share of pairs whose positive projects further along it; 0.5 is chance, and so it is where the direction is
    zero. auc: the same over every positive and every negative, whichever pairs they are of. cohens_d: distance of the
    two means in standard deviations; infinite where nothing spreads, and NaN for a single pair.
    """

    pairs: Float[Tensor, "W N"]
    auc: Float[Tensor, "W N"]
    cohens_d: Float[Tensor, "W N"]


class FittedControl(NamedTuple):
    """A control vector, and what its fitting found.

    explained: share of variance, see `PrincipalDirection`; None for the mean difference. channel_mean: share of each
    direction's length that was a constant over its channels and was removed; None at sites where it is kept.
    separation: of the pairs that it was fitted on, which flatters it.
    """

    control: ControlVector
    explained: Float[Tensor, "W N"] | None
    channel_mean: Float[Tensor, "W N"] | None
    separation: Separation


def fit_control(
    positive: Float[Tensor, "P W N D"],
    negative: Float[Tensor, "P W N D"],
    *,
    site: Site,
    model: str,
    method: str = "mean",
    windows: Sequence[Window] = WHOLE_SCHEDULE,
    provenance: Mapping[str, Any] | None = None,
) -> FittedControl:
    """A control vector that points from the negative sides of pairs to the positive ones.

    At "hidden_states" the constant over channels is removed from each direction: the next LayerNorm would erase it.

    Args:
        positive, negative: activations of the two sides; row i of one pairs with row i of the other.
        site, model, windows: what they were recorded from.
        method: `mean` for `mean_difference`; `pca_pair` and `pca_difference` for `principal_direction`, centred so.
        provenance: how they were recorded, JSON values; method and number of pairs are added.

    Raises:
        ShapeError: sides of different shapes, or no pairs.
        ConfigError: NaN or infinite activations, an unknown method, or settings that no control vector can have.
    """
    if method not in METHODS:
        raise ConfigError(f"method={method!r} is unknown; use {', '.join(METHODS)}")
    if method == "mean":
        directions, explained = mean_difference(positive, negative), None
    else:
        centre: Centre = "pair" if method == "pca_pair" else "difference"
        directions, explained = principal_direction(positive, negative, centre)
    channel_mean = None
    if site == "hidden_states":
        directions, channel_mean = without_channel_mean(directions)
    about = {**(provenance or {}), "method": method, "num_pairs": len(positive)}
    control = ControlVector(site, directions, model, tuple(windows), about)
    return FittedControl(control, explained, channel_mean, separation(positive, negative, directions))


def mean_difference(positive: Float[Tensor, "P W N D"], negative: Float[Tensor, "P W N D"]) -> Float[Tensor, "W N D"]:
    """The mean over pairs of positive minus negative, in the scale of the activations.

    Raises:
        ShapeError: sides of different shapes, or no pairs.
        ConfigError: NaN or infinite activations.
    """
    _refuse_unpaired(positive, negative)
    return (positive.float() - negative.float()).mean(dim=0)


def principal_direction(
    positive: Float[Tensor, "P W N D"], negative: Float[Tensor, "P W N D"], centre: Centre = "pair"
) -> PrincipalDirection:
    """The first principal component of what the pairs differ in, as long as the mean difference is along it.

    That length also settles the sign, which a component lacks: positives project further on average. A component that
    has nothing to do with the mean difference comes out short.

    Args:
        positive, negative: activations of the two sides.
        centre: `pair` takes each side's distance from the middle of its pair, so that what all pairs differ in counts
            (repeng's pca_center); `difference` takes the differences' distance from their mean, so that only what they
            differ from each other in counts (repeng's pca_diff).

    Raises:
        ShapeError: sides of different shapes, or no pairs.
        ConfigError: NaN or infinite activations, or a single pair whose difference is to be centred.

    Source: Zou et al. 2023, "Representation Engineering"; repeng (https://github.com/vgel/repeng), `extract.py`.
    """
    mean = mean_difference(positive, negative)
    if centre == "difference" and len(positive) < 2:
        raise ConfigError("one pair has no differences to compare; give two pairs or more, or centre on the pair")
    directions, explained = torch.zeros_like(mean), mean.new_zeros(mean.shape[:2])
    for window in range(mean.shape[0]):
        for block in range(mean.shape[1]):
            # about the middle of a pair its two sides lie half a difference away, with opposite signs
            rows = positive[:, window, block].float() - negative[:, window, block].float()
            rounding = _ROUNDING * float(rows.square().sum())
            if centre == "difference":
                rows = rows - mean[window, block]
            found = _first_component(rows, rounding)
            if found is not None:
                component, explained[window, block] = found
                directions[window, block] = component * (component @ mean[window, block])
    return PrincipalDirection(directions, explained)


def without_channel_mean(
    directions: Float[Tensor, "W N D"],
) -> tuple[Float[Tensor, "W N D"], Float[Tensor, "W N"]]:
    """Directions without the constant that all their channels share, and that constant's share of their length.

    A block's LayerNorm subtracts the mean of the channels, so this part of an edit to hidden states has no effect.
    """
    values = directions.float()
    mean = values.mean(dim=-1, keepdim=True)
    length = values.norm(dim=-1)
    share = mean.squeeze(-1).abs() * values.shape[-1] ** 0.5 / length.where(length > 0, 1)
    return values - mean, share.clamp_max(1)


def separation(
    positive: Float[Tensor, "P W N D"], negative: Float[Tensor, "P W N D"], directions: Float[Tensor, "W N D"]
) -> Separation:
    """How far directions tell pairs apart; a direction's length plays no part.

    Args:
        positive, negative: activations of the two sides, best of pairs that the directions were not fitted on.
        directions: one per window and block.

    Raises:
        ShapeError: sides or directions that do not fit together, or no pairs.
        ConfigError: NaN or infinite activations.
    """
    _refuse_unpaired(positive, negative)
    if directions.shape != positive.shape[1:]:
        raise ShapeError(
            f"directions {tuple(directions.shape)} for activations {tuple(positive.shape)}; give [W, N, D]"
        )
    unit = torch.nn.functional.normalize(directions.float(), dim=-1, eps=torch.finfo(torch.float32).tiny)
    higher, lower = ((side.float() * unit).sum(dim=-1).permute(1, 2, 0).contiguous() for side in (positive, negative))
    ranked = lower.sort(dim=-1).values
    below, up_to = (torch.searchsorted(ranked, higher, side=side).float() for side in ("left", "right"))
    return Separation(
        pairs=_wins((higher > lower).float(), (higher < lower).float()),
        auc=_wins(below / len(positive), 1 - up_to / len(positive)),
        cohens_d=_cohens_d(higher, lower),
    )


def _first_component(rows: Float[Tensor, "P D"], least: float) -> tuple[Float[Tensor, "D"], float] | None:
    """The unit direction of most squared length, and its share of it; None where there is no more than `least`."""
    values = rows.double()  # the products below square the rounding
    total = float(values.square().sum())
    if total <= least:
        return None
    is_wide = len(values) <= values.shape[1]
    squares, vectors = torch.linalg.eigh(values @ values.T if is_wide else values.T @ values)
    component = values.T @ vectors[:, -1] if is_wide else vectors[:, -1]
    return (component / component.norm()).float(), min(1.0, float(squares[-1]) / total)


def _cohens_d(higher: Float[Tensor, "W N P"], lower: Float[Tensor, "W N P"]) -> Float[Tensor, "W N"]:
    apart = higher.mean(dim=-1) - lower.mean(dim=-1)
    if higher.shape[-1] < 2:
        return torch.full_like(apart, torch.nan)
    pooled = ((higher.var(dim=-1) + lower.var(dim=-1)) / 2).sqrt()
    return (apart / pooled).where(apart != 0, 0)


def _wins(won: Float[Tensor, "W N P"], lost: Float[Tensor, "W N P"]) -> Float[Tensor, "W N"]:
    """The mean share won, a tie counted as half."""
    return ((1 + won - lost) / 2).mean(dim=-1)


def _refuse_unpaired(positive: Tensor, negative: Tensor) -> None:
    if positive.shape != negative.shape or positive.ndim != 4 or 0 in positive.shape:
        raise ShapeError(
            f"positives {tuple(positive.shape)} and negatives {tuple(negative.shape)}; "
            "give both as [pairs, windows, blocks, channels]"
        )
    if not (positive.isfinite().all() and negative.isfinite().all()):
        raise ConfigError("the activations hold NaN or infinity; record them anew, in float32 or bfloat16")
