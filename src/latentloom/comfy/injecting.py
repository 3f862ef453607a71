"""What all nodes that inject into blocks do alike: their widgets, their record on model and prompt, their log."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latentloom.comfy.hosts import Host
from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.log import LEVELS, LogLevel, NodeLog
from latentloom.comfy.patterns import BlockStrengths, check_pattern, strengths_for
from latentloom.comfy.schema import Socket, Widget
from latentloom.steering import Operation, Plan
from latentloom.steering.blocks import picture
from latentloom.steering.plan import Method, Payload, Side, Site

BLOCKS_TOOLTIP = "One 0 or 1 per block, a preset's name, or a list as 0-9,20."
STRENGTHS = Socket(
    "block_strengths",
    "BLOCK_STRENGTHS",
    "A strength per block, in the place of block_activations; injection_strength multiplies it.",
    optional=True,
)
STARTS = "Share of the schedule before it begins; WanVideoWrapper counts the steps of each sampler by itself."
ENDS = "Share of the schedule after which it ends; WanVideoWrapper counts the steps of each sampler by itself."
WHEN: tuple[Widget, ...] = (
    Widget(
        "side",
        "cond",
        "Which prediction of guidance is changed; changing both lets guidance cancel the change.",
        options=("cond", "uncond", "both"),
        optional=True,
    ),
    Widget("start_percent", 0.0, STARTS, low=0, high=1, step=0.01, optional=True),
    Widget("end_percent", 1.0, ENDS, low=0, high=1, step=0.01, optional=True),
)
LOG_LEVEL = Widget("log_level", "off", "How much this node tells in the console.", options=LEVELS)


def check_injection(block_activations: str, start_percent: float = 0.0, end_percent: float = 1.0) -> str | None:
    """A message where the blocks are none of any model, or the window is none; None where they may be."""
    return check_pattern(block_activations) or check_window(start_percent, end_percent)


def check_window(start_percent: float, end_percent: float) -> str | None:
    """A message where this is no part of the schedule."""
    if 0 <= start_percent < end_percent <= 1:
        return None
    return f"start_percent {start_percent:g} and end_percent {end_percent:g}; give a start below the end, from 0 to 1"


@dataclass(frozen=True)
class Target:
    """Where and when a node injects.

    Args:
        mode: what the node does, in a few words.
        strengths: one per block of the model.
        side: of guidance.
        window: share of the schedule.
    """

    mode: str
    strengths: BlockStrengths
    side: Side
    window: tuple[float, float]

    def operation(self, site: Site, method: Method, payload: Payload) -> Operation:
        """The change at one site of its blocks."""
        return Operation(site, method, self.strengths, payload, self.side, self.window)


def choose_target(
    host: Host,
    model: Any,
    log: NodeLog,
    mode: str,
    pattern: str,
    strength: float,
    curve: BlockStrengths | None,
    side: Side,
    window: tuple[float, float],
) -> Target | None:
    """Where a node injects, told in its log; None, with a warning, where that is nowhere.

    Args:
        host, model, log, mode: of the node.
        pattern, strength, curve: see `strengths_for`.
        side, window: see `Operation`.

    Raises:
        ConfigError: blocks that the model does not have.
    """
    num_blocks = host.sizes(model).num_blocks
    strengths = strengths_for(pattern, num_blocks, strength, curve)
    log.basic(f"{picture(strengths)} {sum(map(bool, strengths))} of {num_blocks} blocks, {mode}")
    if not any(strengths):
        log.warn("no block is active, so nothing is injected; choose blocks and a strength above 0")
        return None
    return Target(mode, strengths, side, window)


def inject(
    host: Host,
    model: Any,
    target: Target,
    operations: tuple[Operation, ...],
    log: NodeLog,
    log_level: LogLevel,
    noted: Mapping[str, Any],
) -> tuple[Any, dict[str, Any]]:
    """A clone of the model that is changed by the operations and keeps a record, and that record.

    Args:
        host, model: of the node.
        target: goes into the record.
        operations: at least one.
        log, log_level: told of each call of the model.
        noted: more for the record.

    Raises:
        ConfigError: the operations do not fit the model.
    """
    record = {
        "strengths": list(target.strengths),
        "blocks": picture(target.strengths),
        "mode": target.mode,
        "side": target.side,
        "window": list(target.window),
        **noted,
        "log_level": log_level,
    }
    edited = host.install(model, Plan(operations), None if log_level == "off" else log.call)
    record = after_earlier(host, model, record)
    return host.annotate(edited, record), record


def after_earlier(host: Host, model: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with those of the edits that the model had before it, oldest first, under `before`."""
    newest = host.notes(model)
    if not newest:
        return dict(record)
    alone = {key: value for key, value in newest.items() if key != "before"}
    return {**record, "before": [*newest.get("before", []), alone]}


def record_on_text(host: Host, text_embeds: Any, record: Mapping[str, Any]) -> Any:
    """The same prompt with the record kept beside it."""
    return host.write_text(text_embeds, host.read_text(text_embeds), {CONFIG: dict(record)})
