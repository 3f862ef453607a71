"""The door for ComfyUI, which takes this folder for a node pack; everything behind it is `latentloom.comfy`."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("latentloom") is None:  # cloned, not installed
    sys.path.append(str(Path(__file__).parent / "src"))

WEB_DIRECTORY = "./web"

if find_spec("comfy_api") is not None and find_spec("comfy_api.latest") is not None:
    from latentloom.comfy.extension import comfy_entrypoint as comfy_entrypoint
else:
    from latentloom.comfy.extension import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
    from latentloom.comfy.extension import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS
