"""Runs a node's function for ComfyUI, by whichever of its conventions, and hands on what the node shows."""

import inspect
import secrets
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from latentloom.comfy import core
from latentloom.comfy.hosts import host_named
from latentloom.comfy.schema import Node, Shown


def execute(node: Node, inputs: Mapping[str, Any], node_id: str | None) -> tuple[tuple[Any, ...], dict[str, list[Any]]]:
    """The node's results, and what the page shows: `text` and `images`, as ComfyUI's messages name them.

    Args:
        node: what to run.
        inputs: by name; those without a value may be missing.
        node_id: of the node in its graph.
    """
    given = dict(inputs)
    if node.host is not None:
        given["host"] = host_named(node.host)
    if "node_id" in inspect.signature(node.run).parameters:
        given["node_id"] = node_id
    try:
        result = node.run(**given)
    finally:
        core.release_memory()
    shown = result if isinstance(result, Shown) else Shown(result)
    if len(shown.values) != len(node.outputs):
        raise TypeError(f"{node.id} returned {len(shown.values)} values for {len(node.outputs)} outputs")
    messages: dict[str, list[Any]] = {}
    if shown.text:
        messages["text"] = [shown.text]
    if shown.pictures:
        messages["images"] = [_save(picture) for picture in shown.pictures]
    return shown.values, messages


def _save(picture: Tensor) -> dict[str, str]:
    folder = core.temporary_folder()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"latentloom_{secrets.token_hex(8)}.png"
    pixels = picture.mul(255).round().clamp(0, 255).byte().cpu().numpy()
    Image.fromarray(pixels).save(folder / name)
    return {"filename": name, "subfolder": "", "type": "temp"}
