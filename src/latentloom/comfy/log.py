"""What a node tells of its work, as much as its own log level asks for."""

import logging
from typing import Literal, get_args

from latentloom.steering.hosts.official import CallSummary

LogLevel = Literal["off", "basic", "verbose", "trace"]
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)

logger = logging.getLogger("latentloom.comfy")


class NodeLog:
    """Messages of one node, through the `logging` module; its level is the node's, not the process's.

    Args:
        name: of the node.
        node_id: in its graph.
        level: basic for what was set up, verbose for measurements, trace for every call and where it came from.
    """

    def __init__(self, name: str, node_id: str | None, level: LogLevel) -> None:
        self._from = f"{name} #{node_id}" if node_id is not None else name
        self._level = LEVELS.index(level)

    def basic(self, message: str) -> None:
        """Say what was set up."""
        self._tell("basic", message)

    def verbose(self, message: str) -> None:
        """Say what was measured."""
        self._tell("verbose", message)

    def trace(self, message: str) -> None:
        """Say what happens, and where in the program."""
        self._tell("trace", message)

    def warn(self, message: str) -> None:
        """Say at every level what will surprise the user."""
        logger.warning("%s: %s", self._from, message)

    def call(self, summary: CallSummary) -> None:
        """Say which blocks a call of the model changes; a `Listener`."""
        sides = "+".join("cond" if side else "uncond" for side in summary.conditional)
        blocks = " ".join(summary.blocks) or "no block"
        self._tell("verbose", f"{summary.progress:4.0%} of the schedule, {sides}: {blocks}")

    def _tell(self, level: LogLevel, message: str) -> None:
        if self._level >= LEVELS.index(level):
            # stacklevel leaves out the two frames of this class
            logger.info("%s: %s", self._from, message, stack_info=self._level == LEVELS.index("trace"), stacklevel=3)
