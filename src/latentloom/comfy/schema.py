"""How a node is declared: what goes in, what comes out, which function runs. ComfyUI is not needed to read it.

A node that takes a model or text of a host is declared once, with sockets of `HOST_MODEL` and `HOST_TEXT`, and becomes
two nodes of ComfyUI: one for ComfyUI-WanVideoWrapper, under the id that saved workflows use, and its native twin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

HOST_MODEL = "HOST_MODEL"
"""Stands for MODEL or WANVIDEOMODEL."""
HOST_TEXT = "HOST_TEXT"
"""Stands for CONDITIONING or WANVIDEOTEXTEMBEDS."""

HostName = Literal["native", "wrapper"]
#: What the stand-ins mean in each host.
SOCKETS: dict[HostName, dict[str, str]] = {
    "wrapper": {HOST_MODEL: "WANVIDEOMODEL", HOST_TEXT: "WANVIDEOTEXTEMBEDS"},
    "native": {HOST_MODEL: "MODEL", HOST_TEXT: "CONDITIONING"},
}
ROOT_CATEGORY = "LatentLoom"
NATIVE_PREFIX = "LatentLoom"


@dataclass(frozen=True)
class Socket:
    """An input that only a link fills.

    Args:
        name: of the keyword that `run` gets.
        type: ComfyUI's name of it, or a stand-in of both hosts'.
        tooltip: one sentence.
        optional: `run` gets no such keyword where nothing is linked.
    """

    name: str
    type: str
    tooltip: str
    optional: bool = False


@dataclass(frozen=True)
class Widget:
    """An input that the user sets on the node; a link may fill it as well.

    Args:
        name: of the keyword that `run` gets.
        default: its value at first; its type says the kind: bool, int, float, str.
        tooltip: one sentence.
        options: of a choice, in order; or a function that gives them when the node is shown, as files come and go.
        low, high, step: of a number.
        multiline: of a text.
        optional: true for all that came after a node's first version, so that workflows saved before still load;
            `run` has the same default.
        kind: name of a widget of our own in `web/`, which draws it.
        linked: whether the widget starts as a socket.
    """

    name: str
    default: bool | int | float | str
    tooltip: str
    options: Sequence[str] | Callable[[], Sequence[str]] = ()
    low: float | None = None
    high: float | None = None
    step: float | None = None
    multiline: bool = False
    optional: bool = False
    kind: str = ""
    linked: bool = False

    @property
    def type(self) -> str:
        """ComfyUI's name of it."""
        if self.options:
            return "COMBO"
        return {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}[type(self.default)]

    def choices(self) -> list[str]:
        """What can be chosen now."""
        return list(self.options() if callable(self.options) else self.options)


@dataclass(frozen=True)
class Output:
    """A result.

    Args:
        name: shown beside its socket.
        type: as of a `Socket`.
        tooltip: one sentence.
    """

    name: str
    type: str
    tooltip: str


@dataclass(frozen=True)
class Shown:
    """A node's results and what it shows on itself.

    Args:
        values: one per output.
        text: lines, in a fixed-width font.
        pictures: [H, W, 3] each, values from 0 to 1.
    """

    values: tuple[Any, ...]
    text: str = ""
    pictures: tuple[Tensor, ...] = field(default=())


@dataclass(frozen=True)
class Node:
    """A node.

    Args:
        id: which saved workflows name it by; never changes.
        name: shown in menus and as the title.
        topic: its folder in the menu.
        description: what it does, in one or two sentences.
        inputs: in the order in which saved workflows list their widgets' values: new ones come last.
        outputs: in order.
        run: called with the inputs by name, and with `host` where the node is of one; returns one value per output, as
            a tuple or as `Shown`. `node_id` is given too if it takes one.
        check: called before anything runs, with those widgets that it names and that no link fills; returns a message
            if they cannot be. ComfyUI then leaves the check of their ranges to it.
        fingerprint: called with the inputs; the node runs again if its answer is another than last time.
        host: where the node belongs to one.
        shows: whether it runs for its own sake, though nothing follows it.
        help: Markdown for its help page, after the tables of inputs and outputs: what to expect, what to look out for.
    """

    id: str
    name: str
    topic: str
    description: str
    inputs: tuple[Socket | Widget, ...]
    outputs: tuple[Output, ...]
    run: Callable[..., tuple[Any, ...] | Shown]
    check: Callable[..., str | None] | None = None
    fingerprint: Callable[..., Any] | None = None
    host: HostName | None = None
    shows: bool = False
    help: str = ""

    @property
    def category(self) -> str:
        """Its place in ComfyUI's menu."""
        return f"{ROOT_CATEGORY}/{self.topic}"


def for_both_hosts(node: Node) -> tuple[Node, Node]:
    """The node for ComfyUI-WanVideoWrapper, under its own id, and the same for ComfyUI's own Wan."""
    return _for_host(node, "wrapper"), _for_host(node, "native")


def native_id(wrapper_id: str) -> str:
    """The id of the native twin."""
    return NATIVE_PREFIX + wrapper_id.removeprefix("WanVideo")


def _for_host(node: Node, host: HostName) -> Node:
    meant = SOCKETS[host]

    def of_host(part: Any) -> Any:
        return (
            replace(part, type=meant[part.type]) if isinstance(part, Socket | Output) and part.type in meant else part
        )

    native = host == "native"
    return replace(
        node,
        id=native_id(node.id) if native else node.id,
        name=node.name if native else f"{node.name} (WanVideoWrapper)",
        inputs=tuple(of_host(part) for part in node.inputs),
        outputs=tuple(of_host(part) for part in node.outputs),
        host=host,
    )
