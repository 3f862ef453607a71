"""The nodes by ComfyUI's current convention: subclasses of `io.ComfyNode`, which an extension lists."""

import inspect
from collections.abc import Iterable
from typing import Any

from latentloom.comfy.checks import answering
from latentloom.comfy.core import module
from latentloom.comfy.execute import execute
from latentloom.comfy.schema import Node, Output, Socket, Widget


def extension(nodes: Iterable[Node]) -> Any:
    """What `comfy_entrypoint` returns."""
    latest = module("comfy_api.latest")
    classes = [node_class(node) for node in nodes]

    async def get_node_list(self: Any) -> list[type]:
        return classes

    return type("LatentLoomExtension", (latest.ComfyExtension,), {"get_node_list": get_node_list})()


def node_class(node: Node) -> type:
    """A class that ComfyUI takes for a node."""
    io = module("comfy_api.latest").io

    def define_schema(cls: type) -> Any:
        return io.Schema(
            node_id=node.id,
            display_name=node.name,
            category=node.category,
            description=node.description,
            inputs=[_input(io, part) for part in node.inputs],
            outputs=[_output(io, output) for output in node.outputs],
            hidden=[io.Hidden.unique_id],
            is_output_node=node.shows,
        )

    def run(cls: Any, **inputs: Any) -> Any:
        values, messages = execute(node, inputs, cls.hidden.unique_id)
        return io.NodeOutput(*values, ui=messages)

    members: dict[str, Any] = {
        "define_schema": classmethod(define_schema),
        "execute": classmethod(run),
        "__doc__": node.description,
    }
    if node.check is not None:
        members["validate_inputs"] = classmethod(_for_class(answering(node.check)))
    if node.fingerprint is not None:
        members["fingerprint_inputs"] = classmethod(_for_class(node.fingerprint))
    return type(node.id, (io.ComfyNode,), members)


def _for_class(function: Any) -> Any:
    """The function with a first parameter for the class, which it does not need."""

    def call(cls: type, **values: Any) -> Any:
        return function(**values)

    first = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(function)
    signed: Any = call
    signed.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])
    return signed


def _input(io: Any, part: Socket | Widget) -> Any:
    if isinstance(part, Socket):
        return io.Custom(part.type).Input(part.name, optional=part.optional, tooltip=part.tooltip)
    made = _widget(io, part)
    if part.kind:
        made.extra_dict = {"latentloom": part.kind}  # no argument of all inputs until the end of 2025
    return made


def _widget(io: Any, part: Widget) -> Any:
    options: dict[str, Any] = {"default": part.default, "tooltip": part.tooltip, "optional": part.optional}
    if part.type == "COMBO":
        return io.Combo.Input(part.name, options=part.choices(), **options)
    if part.linked:
        options["force_input"] = True
    if part.type == "STRING":
        return io.String.Input(part.name, multiline=part.multiline, **options)
    if part.type == "BOOLEAN":
        return io.Boolean.Input(part.name, **options)
    kind = io.Int if part.type == "INT" else io.Float
    return kind.Input(part.name, min=part.low, max=part.high, step=part.step, **options)


def _output(io: Any, output: Output) -> Any:
    # ids of their own: until the end of 2025 an output could not be called like an input
    return io.Custom(output.type).Output(f"{output.name}_output", display_name=output.name, tooltip=output.tooltip)
