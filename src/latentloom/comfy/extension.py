"""What ComfyUI looks for in a node pack, by its current convention and by its first one."""

from typing import Any

from latentloom.comfy import v1, v3
from latentloom.comfy.registry import NODES

NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS = v1.class_mappings(NODES)


async def comfy_entrypoint() -> Any:
    """The extension with all nodes."""
    return v3.extension(NODES)
