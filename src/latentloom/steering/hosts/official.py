"""A plan within one call of a Wan model whose modules bear the official names, as in both of ComfyUI's hosts."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.blocks import picture
from latentloom.steering.hosts.payloads import Project, activations_of, payload_rows
from latentloom.steering.inject import Acting, BlockEdits, ContextEdit, Injector, Material, TokenEdit, of_clips
from latentloom.steering.plan import ActivationsPayload, Operation, Plan, PromptPayload, RowsPayload, Site
from latentloom.steering.text_rows import TextRows
from latentloom.tensors import TextEmbeddings

Record = Callable[[Operation, TextEmbeddings], Mapping[int, Tensor]]
"""(operation, prompts) -> what the blocks hold at the operation's site if this call is made with the prompts."""


@dataclass(frozen=True)
class CallSummary:
    """What a plan does in one call of the model.

    Args:
        progress: share of the schedule that lies behind, 0 to 1.
        conditional: per row of text, true where it is a positive prompt.
        blocks: one character per block for each operation that acts, see `blocks.picture`; empty where none does.
    """

    progress: float
    conditional: tuple[bool, ...]
    blocks: tuple[str, ...]


Listener = Callable[[CallSummary], None]
"""Is told of each call of a model that carries a plan."""


@dataclass(frozen=True, eq=False)
class CarriedPlan:
    """A plan as ComfyUI's options carry it: these are copied deeply for each clone and each run, and it is not.

    Args:
        plan: its payloads can be large.
        listeners: told of each call.
    """

    plan: Plan
    listeners: tuple[Listener, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "CarriedPlan":
        return self


@dataclass(frozen=True, eq=False)
class Recording:
    """Fills `values` with what blocks hold when the model runs, edits of the same call included.

    Args:
        blocks: which; at hidden states these are their inputs.
        site: hidden states or what cross-attention returns.
        progress: share of the schedule that plans are told; None for what the call says.
        values: by block, on the CPU; of several calls the first counts.
    """

    blocks: Collection[int]
    site: Site = "hidden_states"
    progress: float | None = None
    values: dict[int, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Recording":
        return self  # the sampler copies options deeply, and its run shall fill this one

    def keep(self, block: int, values: Tensor) -> None:
        """Record, if these are asked for."""
        if block in self.blocks and block not in self.values:
            self.values[block] = values.detach().to("cpu", copy=True)


@dataclass(frozen=True, eq=False)
class OfficialCall:
    """One call of the model.

    Args:
        conditional: per row of text, true where it is a positive prompt.
        clips: per row of text, which of a payload's prompts it takes.
        progress: share of the schedule that lies behind, 0 to 1.
        lengths: true rows of each text, on the device that computes.
        num_text_rows: what the host pads each text to, K.
        text_dim: channels of the text encoder, T.
        project: for rows on any device; answers on the device that computes.
        record: None where the host cannot.
    """

    conditional: tuple[bool, ...]
    clips: tuple[int, ...]
    progress: float
    lengths: Int[Tensor, "B"]
    num_text_rows: int
    text_dim: int
    project: Project
    record: Record | None = None


class CallEdits:
    """A plan's edits for one call; made anew for each, so that nothing outlives it. False where none acts.

    Args:
        plan: fits the model.
        call: who is asked.

    Raises:
        ConfigError: an operation needs a second run of the model, and the host has none.
        ShapeError: a payload's prompt is longer than the host's padded length.
    """

    def __init__(self, plan: Plan, call: OfficialCall) -> None:
        self._call = call
        self._injector = Injector(plan, call.lengths.device)
        self._acting = self._injector.acting(call.conditional, call.progress)
        self._material = [_material(act, call) for act in self._acting]

    def tell(self, listeners: tuple[Listener, ...]) -> None:
        """Sum this call up for whoever listens."""
        if listeners:
            blocks = tuple(picture(act.operation.strengths) for act in self._acting if act is not None)
            summary = CallSummary(self._call.progress, self._call.conditional, blocks)
            for listen in listeners:
                listen(summary)

    def __bool__(self) -> bool:
        return any(self._acting)

    def acts_at(self, site: Site) -> bool:
        """Whether any block is edited there in this call."""
        return any(act is not None and act.operation.site == site for act in self._acting)

    def block(self, index: int) -> BlockEdits:
        """The edits of one block."""
        return self._injector.edits(index, self._acting, self._material)

    def context(self, edits: tuple[ContextEdit, ...], context: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """A block's context, its text rows edited; image rows stand before these and stay as they are."""
        if not edits:
            return context
        start = context.shape[1] - self._call.num_text_rows
        text = TextRows(context[:, start:], self._call.lengths)
        for edit in edits:
            text = edit(text)
        rows = text.rows.to(context.dtype)
        return torch.cat([context[:, :start], rows], dim=1) if start else rows


def edited(edits: tuple[TokenEdit, ...], values: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
    """Tokens after all edits, in order."""
    for edit in edits:
        values = edit(values)
    return values


def check_fits(plan: Plan, model: Any) -> None:
    """Return if the plan fits a model in the official naming; its weights are not looked at.

    Raises:
        ConfigError: it does not, or this is no such model.
    """
    missing = [name for name in ("blocks", "dim", "text_dim", "text_embedding") if not hasattr(model, name)]
    if missing:
        raise ConfigError(f"{type(model).__name__} is no Wan model: it has no {missing[0]}; connect a Wan model")
    plan.check(len(model.blocks), model.dim, model.text_dim)


def true_lengths(context: Float[Tensor, "B K T"]) -> Int[Tensor, "B"]:
    """Rows of each text up to the last that is not all zeros: what follows is padding, and nobody says how much."""
    positions = torch.arange(1, context.shape[1] + 1, device=context.device)
    return ((context != 0).any(dim=-1) * positions).amax(dim=1)


def _material(act: Acting | None, call: OfficialCall) -> Material:
    if act is None:
        return None
    operation, payload = act.operation, act.operation.payload
    if isinstance(payload, ActivationsPayload):
        return {block: activations_of(values, call.clips) for block, values in payload.activations.values.items()}
    if isinstance(payload, PromptPayload) and operation.site != "context":
        if call.record is None:
            raise ConfigError(
                f"a prompt on {operation.site} needs a second run of the model, which this host has not; "
                "record its activations first, or use the context"
            )
        return call.record(operation, of_clips(payload.text, call.clips))
    if isinstance(payload, PromptPayload | RowsPayload):
        return payload_rows(payload, call.clips, call.project, text_dim=call.text_dim, padded_to=call.num_text_rows)
    return None
