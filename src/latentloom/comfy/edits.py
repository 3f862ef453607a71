"""The edits on a model: what editors wrote down, held against the plan that the model carries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from latentloom.comfy.pattern_text import analyse
from latentloom.steering import Operation, Plan
from latentloom.steering.blocks import picture

OPERATIONS = "operations"
"""Where a record may list its operations as `describe_operations` gives them; else one per site is meant."""
INJECTIONS = {
    "context": "injection into the context",
    "hidden_states": "injection into hidden states",
    "both": "injection into the context and hidden states",
}
"""An editor's injection mode, in words; records of other nodes have words of their own."""
State = Literal["active", "not active", "pattern"]


@dataclass(frozen=True)
class Edit:
    """One edit, as a person looks at it.

    Args:
        what: in a few words.
        strengths: one per block.
        side: of guidance.
        window: share of the schedule, from and to.
        state: active if the model carries it, not active if only a record speaks of it; a pattern is no edit yet.
        difference: of the injected prompt from the one that is sampled; None where it is not known.
    """

    what: str
    strengths: tuple[float, ...]
    side: str = "cond"
    window: tuple[float, float] = (0.0, 1.0)
    state: State = "active"
    difference: float | None = None

    def describe(self) -> list[str]:
        """Lines of text."""
        lines = [picture(self.strengths), *analyse(self.strengths)]
        if self.state == "pattern":
            return [f"{self.what}: a pattern, not an edit", *lines]
        start, end = self.window
        lines.append(f"during {start:.0%} to {end:.0%} of the schedule, side {self.side}")
        if self.difference is not None:
            lines.append(f"the injected prompt differs by {self.difference:.0%} (relative L2)")
        return [f"{self.what}: {self.state}", *lines]


def records_of(notes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each editor wrote on a model, in order, from the last one's note."""
    return [*notes.get("before", []), notes] if notes else []


def read_edits(records: Sequence[Mapping[str, Any]], plan: Plan | None) -> list[Edit]:
    """Every edit that is written down, and every operation that nobody wrote down.

    Args:
        records: as editors leave them.
        plan: what the model carries.
    """
    left = list(plan.operations) if plan is not None else []
    edits = []
    for record in records:
        found = _operations_of(record, left)
        left = [operation for operation in left if operation not in found]
        edits.append(_from_record(record, is_active=bool(found)))
    return [*edits, *_without_record(left)]


def describe_operations(operations: Sequence[Operation]) -> list[dict[str, object]]:
    """Operations in a record, by which it is found in a plan again."""
    return Plan(tuple(operations)).describe()


def _operations_of(record: Mapping[str, Any], left: Sequence[Operation]) -> list[Operation]:
    if OPERATIONS in record:
        found = []
        for description in record[OPERATIONS]:
            rest = [operation for operation in left if operation not in found]
            found += [operation for operation in rest if Plan((operation,)).describe() == [description]][:1]
        return found
    meant = _from_record(record, is_active=True)
    alike = [
        operation
        for operation in left
        if (operation.side, tuple(operation.window), picture(operation.strengths))
        == (meant.side, meant.window, picture(meant.strengths))
    ]
    # one per site: the same edit may have been made twice
    return list({operation.site: operation for operation in reversed(alike)}.values())


def _from_record(record: Mapping[str, Any], is_active: bool) -> Edit:
    start, end = record.get("window", (0.0, 1.0))
    mode = str(record.get("mode", "an edit"))
    return Edit(
        what=INJECTIONS.get(mode, mode),
        strengths=tuple(float(strength) for strength in record.get("strengths", ())),
        side=str(record.get("side", "cond")),
        window=(float(start), float(end)),
        state="active" if is_active else "not active",
        difference=record.get("difference"),
    )


def _without_record(operations: Sequence[Operation]) -> list[Edit]:
    """One edit for all operations of a kind, such as those that take a span out direction by direction."""
    kinds: dict[tuple, list[Operation]] = {}
    for one in operations:
        payload = type(one.payload).__name__
        kinds.setdefault((one.site, one.method, one.side, one.window, payload), []).append(one)
    return [
        Edit(
            what=f"{method} on {site} of {payload}" + (f", {len(alike)} operations" if len(alike) > 1 else ""),
            strengths=tuple(max(values, key=abs) for values in zip(*(one.strengths for one in alike), strict=True)),
            side=side,
            window=window,
        )
        for (site, method, side, window, payload), alike in kinds.items()
    ]
