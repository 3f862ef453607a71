"""Graphs of both hosts for the tests: MicroWan, two prompts, the editor where it is asked for, and a saved latent."""

import secrets
from typing import Any, Literal

from comfy_server.api import Graph

HostName = Literal["native", "wrapper"]
RED = "A small red circle moves to the left on a black background."
GREEN = "A large green cross moves up on a white background."
STEPS = 8

EDITORS: dict[HostName, str] = {"native": "LatentLoomActivationEditor", "wrapper": "WanVideoActivationEditor"}
FAILING: dict[HostName, str] = {"native": "LatentLoomTestFailingModel", "wrapper": "LatentLoomTestFailingWan"}

MODEL, TEXT, INJECTED, EDITOR, FAILS, SAMPLER, SAVE = "1", "2", "10", "4", "12", "6", "8"
"""The numbers of the nodes."""


def graph(
    host: HostName,
    edit: dict[str, Any] | None = None,
    *,
    prompt: str = RED,
    seed: int = 0,
    cfg: float = 3.0,
    steps: int = STEPS,
    fails_at: int | None = None,
) -> Graph:
    """A clip of 48 x 48 from a prompt.

    Args:
        host: whose nodes.
        edit: widgets of the editor, which injects `GREEN`; no editor if None.
        prompt: the positive one.
        seed, cfg, steps: of the sampler.
        fails_at: the step from which the model raises an error.
    """
    nodes = _native(prompt, seed, cfg, steps) if host == "native" else _wrapper(prompt, seed, cfg, steps)
    text = "positive" if host == "native" else "text_embeds"
    given = nodes[SAMPLER]["inputs"]
    if edit is not None:
        nodes[INJECTED] = _text(host, GREEN)
        linked = {"model": [MODEL, 0], "text_embeds": [TEXT, 0], "injection_embeds": [INJECTED, 0]}
        nodes[EDITOR] = {"class_type": EDITORS[host], "inputs": {**linked, **EDIT, **edit}}
        given |= {"model": [EDITOR, 0], text: [EDITOR, 1]}
    if fails_at is not None:
        nodes[FAILS] = {"class_type": FAILING[host], "inputs": {"model": given["model"], "step": fails_at}}
        given["model"] = [FAILS, 0]
    return nodes


EDIT: dict[str, Any] = {
    "injection_strength": 1.0,
    "block_activations": "all",
    "enable_patching": True,
    "log_level": "off",
    "injection_mode": "context",
}
"""The editor's widgets that have no default in an API prompt."""


def _text(host: HostName, prompt: str) -> dict[str, Any]:
    if host == "native":
        return {"class_type": "CLIPTextEncode", "inputs": {"clip": [MODEL, 1], "text": prompt}}
    words = {"t5": [MODEL, 1], "positive_prompt": prompt, "negative_prompt": ""}
    return {"class_type": "WanVideoTextEncode", "inputs": words}


def _new_name() -> str:
    return f"latent_{secrets.token_hex(4)}"  # another each time, so that it is saved though all else is cached


def _native(prompt: str, seed: int, cfg: float, steps: int) -> Graph:
    size = {"width": 48, "height": 48, "length": 9, "batch_size": 1}
    linked = {"model": [MODEL, 0], "positive": [TEXT, 0], "negative": ["3", 0], "latent_image": ["5", 0]}
    settings = {"seed": seed, "steps": steps, "cfg": cfg, "denoise": 1.0}
    method = {"sampler_name": "uni_pc", "scheduler": "simple"}
    return {
        MODEL: {"class_type": "LatentLoomMicroWanLoader", "inputs": {}},
        TEXT: _text("native", prompt),
        "3": _text("native", ""),
        "5": {"class_type": "EmptyHunyuanLatentVideo", "inputs": size},
        SAMPLER: {"class_type": "KSampler", "inputs": {**linked, **settings, **method}},
        SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": _new_name()}},
    }


def _wrapper(prompt: str, seed: int, cfg: float, steps: int) -> Graph:
    linked = {"model": [MODEL, 0], "text_embeds": [TEXT, 0], "image_embeds": ["5", 0]}
    settings = {"seed": seed, "steps": steps, "cfg": cfg, "shift": 3.0}
    method = {"scheduler": "unipc", "riflex_freq_index": 0, "force_offload": True}
    return {
        MODEL: {"class_type": "LatentLoomMicroWanWrapperLoader", "inputs": {}},
        TEXT: _text("wrapper", prompt),
        "5": {"class_type": "LatentLoomMicroWanEmptyEmbeds", "inputs": {}},
        SAMPLER: {"class_type": "WanVideoSampler", "inputs": {**linked, **settings, **method}},
        SAVE: {"class_type": "SaveLatent", "inputs": {"samples": [SAMPLER, 0], "filename_prefix": _new_name()}},
    }
