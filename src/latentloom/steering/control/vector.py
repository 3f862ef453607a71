"""Control vectors: a direction per block and window of the schedule, with algebra, provenance and use in a plan."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.plan import DirectionPayload, Method, Operation, Side, Site

Window = tuple[float, float]
WHOLE_SCHEDULE: tuple[Window, ...] = ((0.0, 1.0),)
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SUM, UNIT = "weighted_sum", "normalised"  # operations that a provenance names


@dataclass(frozen=True, eq=False)
class ControlVector:
    """Where a concept lies in the activations of one model: a direction per window of the schedule and per block.

    Sums, differences and multiples of control vectors are control vectors. Being linear, they all come down to one
    weighted sum, and that is what the provenance of the result says.

    Args:
        site: which activations of a block the directions belong to.
        directions: W windows, N blocks, D channels, in the scale of the activations; float32 is kept. A block whose
            direction is zero is left alone.
        model: the model that the activations are of, such as the key of its facts.
        windows: for each W, the share of the sampling schedule from (inclusive) and to (exclusive); 0 is pure noise.
        provenance: how the directions came about, JSON values.

    Raises:
        ShapeError: directions of another shape, or not as many as windows.
        ConfigError: NaN or infinite directions, windows that overlap or leave [0, 1], an unknown site, no model, or a
            provenance that JSON cannot hold.
    """

    site: Site
    directions: Float[Tensor, "W N D"]
    model: str
    windows: tuple[Window, ...] = WHOLE_SCHEDULE
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_site(self.site)
        _refuse_shape(self.directions, len(self.windows))
        _refuse_windows(self.windows)
        if not self.model.strip() or not self.model.isprintable():
            raise ConfigError(f"model={self.model!r} names no model; give a name such as micro")
        directions = self.directions.detach().float()
        if not directions.isfinite().all():
            raise ConfigError("the directions hold NaN or infinity; make them anew, from finite float32 numbers")
        object.__setattr__(self, "directions", directions)
        # through JSON and back: what a file would give back, and nothing that the caller can still change
        object.__setattr__(self, "provenance", _as_json(self.provenance))

    def __add__(self, other: "ControlVector") -> "ControlVector":
        return combine([self, other], [1, 1]) if isinstance(other, ControlVector) else NotImplemented

    def __sub__(self, other: "ControlVector") -> "ControlVector":
        return combine([self, other], [1, -1]) if isinstance(other, ControlVector) else NotImplemented

    def __mul__(self, factor: float) -> "ControlVector":
        return combine([self], [factor]) if isinstance(factor, int | float) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "ControlVector":
        if not isinstance(divisor, int | float):
            return NotImplemented
        if divisor == 0:
            raise ConfigError("a control vector cannot be divided by 0; give another number")
        return combine([self], [1 / divisor])

    def __neg__(self) -> "ControlVector":
        return combine([self], [-1])

    def normalised(self) -> "ControlVector":
        """Every direction at length 1, so that a strength is a length; a zero direction stays zero."""
        provenance = {"operation": UNIT, "parents": [self.provenance]}
        return replace(self, directions=_unit(self.directions), provenance=provenance)

    def cosine(self, other: "ControlVector") -> Float[Tensor, "W N"]:
        """The cosine between the two directions of each window and block; 0 where one of them is zero.

        Raises:
            ConfigError: vectors of different sites, models, windows or shapes.
        """
        _refuse_unlike([self, other])
        return (_unit(self.directions) * _unit(other.directions)).sum(dim=-1).clamp(-1, 1)

    def operations(
        self,
        strengths: float | Sequence[float] = 1.0,
        method: Method = "add",
        side: Side = "cond",
        blocks: Sequence[float] | None = None,
    ) -> tuple[Operation, ...]:
        """The operations of a plan that applies this vector, one per window.

        Args:
            strengths: how strongly; one number, or one per window. 1 adds the directions as they are.
            method: add, add_keep_norm or ablate.
            side: which side of the guidance.
            blocks: what the strength is multiplied by in each of the N blocks, such as a pattern's ones and zeros;
                None is 1 in all.

        Raises:
            ConfigError: another method, or not as many numbers as windows or blocks.
        """
        if method not in ("add", "add_keep_norm", "ablate"):
            raise ConfigError(f"method={method!r} takes no control vector; use add, add_keep_norm or ablate")
        per_window = [strengths] * len(self.windows) if isinstance(strengths, int | float) else list(strengths)
        per_block = [1.0] * self.num_blocks if blocks is None else list(blocks)
        if len(per_window) != len(self.windows):
            raise ConfigError(f"{len(per_window)} strengths for {len(self.windows)} windows; give one, or one for each")
        if len(per_block) != self.num_blocks:
            raise ConfigError(f"{len(per_block)} shares for {self.num_blocks} blocks; give one for each block")
        operations = []
        for strength, vectors, window in zip(per_window, self.directions, self.windows, strict=True):
            acts = vectors.any(dim=-1).tolist()  # a zero direction would still round what it is added to
            factors = tuple(float(strength * share * act) for share, act in zip(per_block, acts, strict=True))
            operations.append(Operation(self.site, method, factors, DirectionPayload(vectors), side, window))
        return tuple(operations)

    @property
    def num_blocks(self) -> int:
        """Blocks of the model, N."""
        return self.directions.shape[1]


def combine(vectors: Sequence[ControlVector], weights: Sequence[float]) -> ControlVector:
    """The weighted sum of control vectors of one site, model and set of windows.

    Its provenance lists what the vectors came from with their weights, sums resolved into their own parents.

    Raises:
        ConfigError: no vectors, vectors that differ in site, model, windows or shape, not one finite weight for each,
            or a sum beyond float32.
    """
    if not vectors or len(vectors) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(vectors)} control vectors; give at least one, and one each")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"weights {list(weights)} are not all finite; give numbers such as 0.5")
    _refuse_unlike(vectors)
    first, *others = (weight * vector.directions for weight, vector in zip(weights, vectors, strict=True))
    directions = sum(others, first)
    return replace(vectors[0], directions=directions, provenance=_summed_provenance(vectors, weights))


def _summed_provenance(vectors: Sequence[ControlVector], weights: Sequence[float]) -> dict[str, Any]:
    """The sum in terms of what is no sum itself: without this, adding up in a loop would nest without bound."""
    parents: list[dict[str, Any]] = []
    totals: list[float] = []
    for vector, weight in zip(vectors, weights, strict=True):
        for parent, share in _terms(vector.provenance):
            if parent in parents:
                totals[parents.index(parent)] += weight * share
            else:
                parents.append(parent)
                totals.append(weight * share)
    return {"operation": SUM, "weights": totals, "parents": parents}


def _terms(provenance: dict[str, Any]) -> list[tuple[dict[str, Any], float]]:
    if provenance.get("operation") != SUM:
        return [(provenance, 1.0)]
    parents, weights = provenance.get("parents"), provenance.get("weights")
    if not isinstance(parents, list) or not isinstance(weights, list) or len(parents) != len(weights):
        return [(provenance, 1.0)]  # a file's word, which need not be ours
    return list(zip(parents, weights, strict=True))


def _unit(directions: Float[Tensor, "W N D"]) -> Float[Tensor, "W N D"]:
    # by the largest channel first: the squares of tiny or huge channels leave float32
    largest = directions.abs().amax(dim=-1, keepdim=True)
    scaled = directions / largest.where(largest > 0, 1)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / length.where(length > 0, 1)


def _refuse_site(site: str) -> None:
    if site not in get_args(Site):
        raise ConfigError(f"site={site!r} is unknown; use {', '.join(get_args(Site))}")


def _refuse_shape(directions: Tensor, num_windows: int) -> None:
    shape = tuple(directions.shape)
    if len(shape) != 3 or 0 in shape or directions.dtype not in FLOATS:
        raise ShapeError(f"directions {shape} of {directions.dtype}; give floats [windows, blocks, channels]")
    if shape[0] != num_windows:
        raise ShapeError(f"directions {shape} for {num_windows} windows; give one set of directions per window")


def _refuse_windows(windows: Sequence[Window]) -> None:
    ends = [0.0]
    for start, end in windows:
        if not ends[-1] <= start < end <= 1:
            raise ConfigError(
                f"windows {list(windows)} are not ascending shares of [0, 1]; use such as (0, 0.5), (0.5, 1)"
            )
        ends.append(end)


def _refuse_unlike(vectors: Sequence[ControlVector]) -> None:
    for what in ("site", "model", "windows"):
        found = list(dict.fromkeys(getattr(vector, what) for vector in vectors))
        if len(found) > 1:
            raise ConfigError(f"control vectors of {what} {found[0]} and {found[1]} do not combine; give one {what}")
    shapes = list(dict.fromkeys(tuple(vector.directions.shape[1:]) for vector in vectors))
    if len(shapes) > 1:
        raise ConfigError(f"control vectors of [blocks, channels] {shapes[0]} and {shapes[1]} do not combine; give one")


def _as_json(provenance: dict[str, Any]) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(provenance, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the provenance cannot be written as JSON ({error}); use text, numbers, lists") from error
