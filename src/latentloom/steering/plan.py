"""What to change inside a transformer: where, how, how strongly, for whom and when.

A plan holds no model and no state; `inject` turns it into functions, and the hosts bind these to a model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.blocks import picture
from latentloom.steering.operations import check_plane
from latentloom.tensors import TextEmbeddings

if TYPE_CHECKING:
    from latentloom.steering.capture import BlockActivations

Site = Literal["context", "hidden_states", "attention_output"]
"""context: the text rows that a block's cross-attention reads. hidden_states: the video tokens that enter a block.
attention_output: what cross-attention gives, before it is added to the video tokens."""

Method = Literal["replace", "lerp", "add", "add_keep_norm", "ablate", "rotate"]
Side = Literal["cond", "uncond", "both"]
Tokens = Literal["text", "all"] | tuple[int, int]


@dataclass(frozen=True, eq=False)
class PromptPayload:
    """What the model makes of other prompts: their rows as context, or its own activations when it is run with them.

    Args:
        text: rows of the text encoder; one prompt for all clips, or one per clip.
    """

    text: TextEmbeddings


@dataclass(frozen=True, eq=False)
class RowsPayload:
    """Context rows that are in the model's width already, past its `text_embedding`; one prompt or one per clip."""

    rows: TextEmbeddings


@dataclass(frozen=True, eq=False)
class DirectionPayload:
    """A direction in the model's width: one for all blocks, or one per block."""

    vectors: Float[Tensor, "N D"]


@dataclass(frozen=True, eq=False)
class PlanePayload:
    """Two directions that span a plane: strength 1 turns the first into the second; one pair, or one per block."""

    first: Float[Tensor, "N D"]
    second: Float[Tensor, "N D"]

    def __post_init__(self) -> None:
        if self.first.shape != self.second.shape:
            raise ConfigError(f"directions {tuple(self.first.shape)} and {tuple(self.second.shape)}; give pairs")
        check_plane(self.first, self.second)


@dataclass(frozen=True, eq=False)
class ActivationsPayload:
    """Activations that were recorded before, one clip for all or one per clip."""

    activations: "BlockActivations"


Payload = PromptPayload | RowsPayload | DirectionPayload | PlanePayload | ActivationsPayload

#: Method -> the strengths it takes and what these mean.
STRENGTHS: dict[str, tuple[float, float, str]] = {
    "replace": (0.0, 1.0, "0 or 1"),
    "lerp": (0.0, 1.0, "0 to 1, the payload's share"),
    "add": (-100.0, 100.0, "-100 to 100, a factor"),
    "add_keep_norm": (-100.0, 100.0, "-100 to 100, a factor"),
    "ablate": (0.0, 2.0, "0 to 2: 1 removes the direction, 2 mirrors it"),
    "rotate": (-4.0, 4.0, "-4 to 4: 1 turns the first direction into the second"),
}
#: Method and site -> the payloads it takes.
TAKES: dict[tuple[str, str], tuple[type, ...]] = {
    **dict.fromkeys([("replace", "context"), ("lerp", "context")], (PromptPayload, RowsPayload)),
    **{
        (method, site): (PromptPayload, ActivationsPayload)
        for method in ("replace", "lerp")
        for site in ("hidden_states", "attention_output")
    },
    ("add", "context"): (DirectionPayload, RowsPayload),
    **{("add", site): (DirectionPayload, ActivationsPayload) for site in ("hidden_states", "attention_output")},
    **{(method, site): (DirectionPayload,) for method in ("add_keep_norm", "ablate") for site in get_args(Site)},
    **{("rotate", site): (PlanePayload,) for site in get_args(Site)},
}


@dataclass(frozen=True, eq=False)
class Operation:
    """One change, the same in every block that it touches but for its strength.

    Args:
        site: where in a block; see `Site`.
        method: `replace` and `lerp` move towards the payload, whole or by a share; `add` adds a direction, or a row per
            token, and `add_keep_norm` then restores every token's length; `ablate` takes a direction out; `rotate`
            turns within a plane.
        strengths: one per block of the model; 0 leaves the block alone. `STRENGTHS` has the range of each method.
        payload: what with; `TAKES` says which kind goes with which method and site.
        side: which of guidance's two predictions is changed. Changing both lets guidance cancel the change.
        window: share of the sampling schedule, from (included) to (left out, except 1); 0 is pure noise.
        tokens: `text` is every true token of the context and every video token; `all` adds the context's padding;
            a pair is a range of positions, the end left out.

    Raises:
        ConfigError: any of these is out of range or does not go with the rest.
    """

    site: Site
    method: Method
    strengths: tuple[float, ...]
    payload: Payload
    side: Side = "cond"
    window: tuple[float, float] = (0.0, 1.0)
    tokens: Tokens = "text"

    def __post_init__(self) -> None:
        for name, allowed in (("site", Site), ("method", Method), ("side", Side)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; use {', '.join(get_args(allowed))}")
        if not isinstance(self.payload, TAKES[self.method, self.site]):
            kinds = " or ".join(kind.__name__ for kind in TAKES[self.method, self.site])
            given = type(self.payload).__name__
            raise ConfigError(f"{self.method} on {self.site} was given {given}; it takes {kinds}")
        self._check_strengths()
        start, end = self.window
        if not 0 <= start < end <= 1:
            raise ConfigError(f"window {self.window} of the schedule; give a start below the end, both from 0 to 1")
        if isinstance(self.tokens, tuple) and not 0 <= self.tokens[0] < self.tokens[1]:
            raise ConfigError(f"tokens {self.tokens}; give a start from 0 up and a later end")
        if not all(tensor.is_meta or tensor.isfinite().all() for tensor in payload_tensors(self.payload)):
            raise ConfigError(f"the payload of {self.method} on {self.site} holds NaN or infinities; make it anew")

        if isinstance(self.payload, ActivationsPayload):
            missing = [block for block in self.blocks if block not in self.payload.activations.values]
            if missing:
                raise ConfigError(f"there are no activations of block {missing[0]}; record them, or leave it alone")

    def _check_strengths(self) -> None:
        low, high, meaning = STRENGTHS[self.method]
        for block, strength in enumerate(self.strengths):
            whole = self.method != "replace" or strength in (0, 1)
            if not math.isfinite(strength) or not low <= strength <= high or not whole:
                raise ConfigError(
                    f"strength {strength} of {self.method} in block {block} is out of range; use {meaning}"
                )

    def acts_at(self, progress: float) -> bool:
        """Whether this share of the schedule lies in the window."""
        start, end = self.window
        return start <= progress < end or (end == 1 and progress >= 1)

    def acts_on(self, conditional: bool) -> bool:
        """Whether this side of guidance is changed."""
        return self.side == "both" or conditional == (self.side == "cond")

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that are changed."""
        return tuple(block for block, strength in enumerate(self.strengths) if strength)


@dataclass(frozen=True, eq=False)
class Plan:
    """Operations that are carried out together; those on one site of one block act in their order here.

    Args:
        operations: at least one, all for one number of blocks.

    Raises:
        ConfigError: no operation, or operations for models of different depth.
    """

    operations: tuple[Operation, ...]

    def __post_init__(self) -> None:
        if not self.operations:
            raise ConfigError("the plan has no operation; give at least one")
        depths = sorted({len(operation.strengths) for operation in self.operations})
        if len(depths) != 1 or depths[0] == 0:
            raise ConfigError(f"the plan's operations are for models of {depths} blocks; give one number of blocks")

    @property
    def num_blocks(self) -> int:
        """Blocks of the models that this plan is for."""
        return len(self.operations[0].strengths)

    def check(self, num_blocks: int, dim: int, text_dim: int) -> None:
        """Return if the plan fits a model of this depth and width.

        Args:
            num_blocks: of the model.
            dim: width of its blocks.
            text_dim: width of its text encoder.

        Raises:
            ConfigError: another number of blocks, or a payload of another width.
        """
        if num_blocks != self.num_blocks:
            raise ConfigError(
                f"the plan is for a model of {self.num_blocks} blocks and this one has {num_blocks}; "
                "make the plan for this model"
            )
        for operation in self.operations:
            width, wanted = _widths(operation.payload, dim, text_dim)
            if width != wanted:
                kind = type(operation.payload).__name__
                raise ConfigError(f"a {kind} of {width} channels for a model that takes {wanted}; encode it anew")
            for tensor in payload_tensors(operation.payload):
                directions = isinstance(operation.payload, DirectionPayload | PlanePayload)
                if directions and len(tensor) not in (1, num_blocks):
                    raise ConfigError(f"{len(tensor)} directions for {num_blocks} blocks; give one for all or one each")

    def describe(self) -> list[dict[str, object]]:
        """The plan as JSON values, one entry per operation, payloads by their kind."""
        return [
            {
                "site": operation.site,
                "method": operation.method,
                "blocks": picture(operation.strengths),
                "strengths": list(operation.strengths),
                "side": operation.side,
                "window": list(operation.window),
                "tokens": operation.tokens,
                "payload": type(operation.payload).__name__,
            }
            for operation in self.operations
        ]


def payload_tensors(payload: Payload) -> Sequence[Tensor]:
    """The tensors of a payload that hold numbers of the model."""
    match payload:
        case PromptPayload(text):
            return (text.tokens,)
        case RowsPayload(rows):
            return (rows.tokens,)
        case DirectionPayload(vectors):
            return (vectors,)
        case PlanePayload(first, second):
            return (first, second)
        case ActivationsPayload(activations):
            return tuple(activations.values.values())


def _widths(payload: Payload, dim: int, text_dim: int) -> tuple[int, int]:
    """Channels of the payload, and what the model takes there."""
    tensor = payload_tensors(payload)[0]
    return tensor.shape[-1], text_dim if isinstance(payload, PromptPayload) else dim
