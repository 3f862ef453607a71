"""The nodes by ComfyUI's first convention: classes with `INPUT_TYPES`, in a mapping from their ids."""

from collections.abc import Iterable
from typing import Any

from latentloom.comfy.checks import answering
from latentloom.comfy.execute import execute
from latentloom.comfy.schema import Node, Socket, Widget


def class_mappings(nodes: Iterable[Node]) -> tuple[dict[str, type], dict[str, str]]:
    """`NODE_CLASS_MAPPINGS` and `NODE_DISPLAY_NAME_MAPPINGS`."""
    nodes = tuple(nodes)
    return {node.id: node_class(node) for node in nodes}, {node.id: node.name for node in nodes}


def node_class(node: Node) -> type:
    """A class that ComfyUI takes for a node."""

    def input_types(cls: type) -> dict[str, dict[str, Any]]:
        types: dict[str, dict[str, Any]] = {"required": {}, "optional": {}, "hidden": {"unique_id": "UNIQUE_ID"}}
        for part in node.inputs:
            types["optional" if part.optional else "required"][part.name] = _input_type(part)
        return types

    def run(self: object, unique_id: str | None = None, **inputs: Any) -> dict[str, Any]:
        values, messages = execute(node, inputs, unique_id)
        return {"ui": messages, "result": values}

    members: dict[str, Any] = {
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": tuple(output.type for output in node.outputs),
        "RETURN_NAMES": tuple(output.name for output in node.outputs),
        "OUTPUT_TOOLTIPS": tuple(output.tooltip for output in node.outputs),
        "FUNCTION": "run",
        "CATEGORY": node.category,
        "DESCRIPTION": node.description,
        "OUTPUT_NODE": node.shows,
        "run": run,
        "__doc__": node.description,
    }
    if node.check is not None:
        members["VALIDATE_INPUTS"] = staticmethod(answering(node.check))
    if node.fingerprint is not None:
        members["IS_CHANGED"] = staticmethod(node.fingerprint)
    return type(node.id, (), members)


def _input_type(part: Socket | Widget) -> tuple[Any, dict[str, Any]]:
    if isinstance(part, Socket):
        return part.type, {"tooltip": part.tooltip}
    options: dict[str, Any] = {"default": part.default, "tooltip": part.tooltip}
    options |= {
        key: value for key, value in (("min", part.low), ("max", part.high), ("step", part.step)) if value is not None
    }
    if part.type == "STRING":
        options["multiline"] = part.multiline
    if part.linked:
        options["forceInput"] = True
    if part.kind:
        options["latentloom"] = part.kind
    return (part.choices() if part.type == "COMBO" else part.type), options
