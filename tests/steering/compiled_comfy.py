"""Steers the stand-ins for ComfyUI's models when they are compiled; a program of its own, since the checks of
annotations that tests install cannot be compiled."""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from steering.comfy_native_model import NativePatcher, NativeWan
from steering.host_plans import PROMPTS, TIMESTEP, assert_same, clips, operation, steered
from steering.wan_video_wrapper_model import WrapperPatcher, WrapperWan

from latentloom.micro import default_checkpoint
from latentloom.steering.hosts import comfy_native, wan_video_wrapper
from latentloom.steering.plan import Plan
from latentloom.wan.pipeline import WanPipeline

HOSTS: dict[str, Any] = {
    "native": (NativePatcher, NativeWan, comfy_native.install),
    "wrapper": (WrapperPatcher, WrapperWan, wan_video_wrapper.install),
}


def compile_model(patcher: Any, way: str) -> None:
    model = patcher.model.diffusion_model
    if way == "whole":
        patcher.model.diffusion_model = torch.compile(model, backend="eager")
    else:
        model.blocks = torch.nn.ModuleList(torch.compile(block, backend="eager") for block in model.blocks)  # pyright: ignore[reportArgumentType]


def main(host: str, way: str, when: str) -> None:
    torch.set_num_threads(1)
    pipeline = WanPipeline.load(default_checkpoint(), device="cpu")
    kinds = [
        ("context", "lerp", "prompt"),
        ("hidden_states", "add", "direction"),
        ("attention_output", "lerp", "activations"),
    ]
    plan = Plan(tuple(operation(pipeline, *kind) for kind in kinds))
    expected = {True: steered(pipeline, plan), False: steered(pipeline, None)}
    patcher_class, model_class, install = HOSTS[host]
    patcher, text = patcher_class(model_class.from_diffusers(pipeline.transformer)), pipeline.encode(PROMPTS[:1])
    if when == "before":
        compile_model(patcher, way)
        patcher.predict(clips()[:1], TIMESTEP, text)
    clone = install(patcher, plan)
    if when == "after":
        compile_model(patcher, way)
    for is_steered in (True, False, True, False):
        one = clone if is_steered else patcher
        assert_same(one.predict(clips()[:1], TIMESTEP, text), expected[is_steered])


if __name__ == "__main__":
    main(*sys.argv[1:])
