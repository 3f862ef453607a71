"""A plan as pure functions per block: tokens in, edited tokens out. Hosts decide when they are called."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering import operations
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PlanePayload, Tokens
from latentloom.steering.text_rows import TextRows, aligned
from latentloom.tensors import TextEmbeddings

ContextEdit = Callable[[TextRows], TextRows]
TokenEdit = Callable[[Tensor], Tensor]
"""[B, S, D] -> the same shape."""

Material = TextRows | Mapping[int, Tensor] | None
"""What a payload comes to in one call: rows of context, activations [B, S, D] per block, or nothing where the payload
is a direction."""


@dataclass(frozen=True, eq=False)
class Acting:
    """An operation that acts in a call, and on which rows of the batch; None is all of them."""

    operation: Operation
    rows: Bool[Tensor, "B"] | None


@dataclass(frozen=True, eq=False)
class BlockEdits:
    """What is done in one block during one call, site by site, in order."""

    context: tuple[ContextEdit, ...] = ()
    hidden_states: tuple[TokenEdit, ...] = ()
    attention_output: tuple[TokenEdit, ...] = ()


class Injector:
    """Turns a plan into edits; holds nothing that a call changes.

    Args:
        plan: what to do.
        device: where the model computes.
    """

    def __init__(self, plan: Plan, device: torch.device | str = "cpu") -> None:
        self.plan = plan
        self.device = torch.device(device)
        self._strengths = [torch.tensor(operation.strengths, device=device) for operation in plan.operations]

    def acting(self, conditional: tuple[bool, ...], progress: float) -> list[Acting | None]:
        """Per operation of the plan, how it acts in a call; None where it does not.

        Args:
            conditional: per row of the batch, which side of guidance it is.
            progress: share of the schedule that lies behind.
        """
        found: list[Acting | None] = []
        for operation in self.plan.operations:
            rows = [operation.acts_on(side) for side in conditional]
            if not operation.blocks or not operation.acts_at(progress) or not any(rows):
                found.append(None)
            else:
                found.append(Acting(operation, None if all(rows) else torch.tensor(rows, device=self.device)))
        return found

    def edits(self, block: int, acting: list[Acting | None], material: list[Material]) -> BlockEdits:
        """The edits of one block in one call.

        Args:
            block: its index.
            acting: from `acting`.
            material: per operation, what its payload comes to in this call.
        """
        sites: dict[str, list] = {"context": [], "hidden_states": [], "attention_output": []}
        for index, act in enumerate(acting):
            if act is None or not act.operation.strengths[block]:
                continue
            strength = self._strengths[index][block]
            make = _context_edit if act.operation.site == "context" else _token_edit
            sites[act.operation.site].append(make(act, block, strength, material[index]))
        return BlockEdits(**{site: tuple(edits) for site, edits in sites.items()})

    def context_key(self, block: int, acting: list[Acting | None]) -> tuple[tuple[int, float, int], ...]:
        """What a block's edits of the context come down to: blocks of one key change one context alike."""
        key = []
        for index, act in enumerate(acting):
            if act is None or act.operation.site != "context" or not act.operation.strengths[block]:
                continue
            several = any(len(tensor) > 1 for tensor in _directions(act.operation))
            key.append((index, act.operation.strengths[block], block if several else 0))
        return tuple(key)


def of_clips(text: TextEmbeddings, clips: tuple[int, ...]) -> TextEmbeddings:
    """A payload's prompts for the clips of a call: its only prompt for all, or each clip's own.

    Raises:
        ConfigError: several prompts, and a clip beyond them.
    """
    if len(text) == 1:
        return text[[0] * len(clips)]
    if clips and max(clips) >= len(text):
        raise ConfigError(f"the payload has {len(text)} prompts and the run has more clips; give one prompt for all")
    return text[list(clips)]


def _context_edit(act: Acting, block: int, strength: Tensor, material: Material) -> ContextEdit:
    operation = act.operation
    if operation.method in ("replace", "lerp"):
        assert isinstance(material, TextRows)
        given = material
        whole = operation.strengths[block] == 1 and not isinstance(operation.tokens, tuple)

        def move(text: TextRows) -> TextRows:
            return given if whole else _moved(text, given, strength, operation.tokens)

        return _on_rows(move, act.rows)

    if isinstance(material, TextRows):  # one row to add per token
        offsets = material

        def shift(text: TextRows) -> TextRows:
            text, given = aligned(text, offsets)
            offset = given.rows * given.is_true.unsqueeze(-1)
            text = replace(text, lengths=torch.maximum(text.lengths, given.lengths))
            return replace(text, rows=operations.add(text.rows, offset, strength))

        return _on_rows(shift, act.rows)

    change = _change(operation, block, strength)

    def turn(text: TextRows) -> TextRows:
        if operation.tokens == "all":
            return replace(text, rows=change(text.rows))
        chosen = _positions(text, operation.tokens).unsqueeze(-1)
        return replace(text, rows=torch.where(chosen, change(text.rows), text.rows))

    return _on_rows(turn, act.rows)


def _moved(text: TextRows, given: TextRows, strength: Tensor, tokens: Tokens) -> TextRows:
    """Row by row towards the payload's rows; where one text has ended, towards or from padding."""
    text, given = aligned(text, given)
    rows, lengths = operations.mix(text.rows, given.rows, strength), given.lengths
    if isinstance(tokens, tuple):
        positions = torch.arange(rows.shape[1], device=rows.device)
        inside = (positions >= tokens[0]) & (positions < tokens[1])
        rows = torch.where(inside[None, :, None], rows, text.rows)
        lengths = lengths.clamp_max(tokens[1])
    return replace(text, rows=rows, lengths=torch.maximum(text.lengths, lengths))


def _positions(text: TextRows, tokens: Tokens) -> Bool[Tensor, "B K"]:
    chosen = text.is_true
    if not isinstance(tokens, tuple):
        return chosen
    positions = torch.arange(chosen.shape[1], device=chosen.device)
    return chosen & (positions >= tokens[0]) & (positions < tokens[1])


def _on_rows(edit: ContextEdit, rows: Bool[Tensor, "B"] | None) -> ContextEdit:
    """The edit on some texts of a batch, the others as they are."""
    if rows is None:
        return edit

    def some(text: TextRows) -> TextRows:
        edited, text = aligned(edit(text), text)
        chosen = torch.where(rows[:, None, None], edited.rows, text.rows)
        return replace(text, rows=chosen, lengths=torch.where(rows, edited.lengths, text.lengths))

    return some


def _token_edit(act: Acting, block: int, strength: Tensor, material: Material) -> TokenEdit:
    operation, tokens = act.operation, act.operation.tokens
    if isinstance(material, Mapping):
        given, whole = material[block], operation.method != "add" and operation.strengths[block] == 1

        def move(values: Tensor) -> Tensor:
            if given.shape != values.shape:
                raise ConfigError(
                    f"activations of shape {tuple(given.shape)} for tokens {tuple(values.shape)} in block {block}; "
                    "record them from clips of the same number and size"
                )
            there = given.to(values.device)  # block by block: all of a large model's activations would fill the device
            if operation.method == "add":
                return operations.add(values, there, strength)
            return there.to(values.dtype) if whole else operations.mix(values, there, strength)

        change = move
    else:
        change = _change(operation, block, strength)

    def edit(values: Tensor) -> Tensor:
        edited = change(values)
        if isinstance(tokens, tuple):
            positions = torch.arange(values.shape[1], device=values.device)
            inside = (positions >= tokens[0]) & (positions < tokens[1])
            edited = torch.where(inside[None, :, None], edited, values)
        return edited if act.rows is None else torch.where(act.rows[:, None, None], edited, values)

    return edit


def _change(operation: Operation, block: int, strength: Float[Tensor, ""]) -> TokenEdit:
    """The edit along a direction or within a plane."""
    payload = operation.payload
    if isinstance(payload, PlanePayload):
        first, second = (_of_block(vectors, block, strength.device) for vectors in (payload.first, payload.second))
        return lambda values: operations.rotate(values, first, second, strength)
    assert isinstance(payload, DirectionPayload)
    vector = _of_block(payload.vectors, block, strength.device)
    change = {
        "add": operations.add,
        "add_keep_norm": operations.add_keep_norm,
        "ablate": operations.ablate,
    }[operation.method]
    return lambda values: change(values, vector, strength)


def _directions(operation: Operation) -> tuple[Tensor, ...]:
    payload = operation.payload
    if isinstance(payload, PlanePayload):
        return payload.first, payload.second
    return (payload.vectors,) if isinstance(payload, DirectionPayload) else ()


def _of_block(vectors: Float[Tensor, "N D"], block: int, device: torch.device) -> Float[Tensor, "D"]:
    return vectors[block if len(vectors) > 1 else 0].to(device)
