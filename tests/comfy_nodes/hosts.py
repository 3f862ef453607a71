"""Both hosts around MicroWan, small enough for every test: patchers, prompts, and a call as a sampler makes it."""

from collections.abc import Mapping
from typing import Any

import torch
from steering.comfy_native_model import NativePatcher, NativeWan
from steering.host_plans import TIMESTEP, clips
from steering.wan_video_wrapper_model import WrapperPatcher, WrapperWan
from torch import Tensor

from latentloom.comfy.execute import execute
from latentloom.comfy.registry import NODES
from latentloom.comfy.schema import HostName, Node, Widget
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

BY_ID = {node.id: node for node in NODES}


class Rig:
    """One host with MicroWan in it.

    Args:
        host: which.
        pipeline: MicroWan.
    """

    def __init__(self, host: HostName, pipeline: WanPipeline) -> None:
        self.host: HostName = host
        self.pipeline = pipeline

    def model(self) -> Any:
        """A fresh patcher around a fresh model."""
        if self.host == "native":
            patcher = NativePatcher(NativeWan.from_diffusers(self.pipeline.transformer))
            # what the projection of a prompt asks of ComfyUI's own
            vars(patcher).update(load_device=torch.device("cpu"))
            vars(patcher.model).update(get_dtype=lambda: torch.float32, manual_cast_dtype=None)
            return patcher
        return WrapperPatcher(WrapperWan.from_diffusers(self.pipeline.transformer))

    def text(self, prompt: str, negative: str = "") -> Any:
        """A prompt as the host's own text node gives it."""
        embeddings = self.pipeline.encode([prompt])
        if self.host == "native":
            return [[embeddings.padded(512), {"pooled_output": None}]]
        return {
            "prompt_embeds": embeddings.to_list(),
            "negative_prompt_embeds": self.pipeline.encode([negative]).to_list(),
            "echoshot": False,
        }

    def embeddings(self, text: Any) -> TextEmbeddings:
        """What `text` made, read back without any code of the nodes."""
        if self.host == "wrapper":
            return TextEmbeddings.from_list(list(text["prompt_embeds"]))
        rows = text[0][0]
        lengths = [int((row != 0).any(dim=-1).nonzero().max()) + 1 for row in rows]
        return TextEmbeddings.from_padded(rows, lengths=lengths)

    def predict(self, model: Any, text: Any, **settings: Any) -> Tensor:
        """The model's answer to one prompt in the middle of a run."""
        return model.predict(clips()[[0]], TIMESTEP, self.embeddings(text), **settings)

    def node(self, wrapper_id: str) -> Node:
        """The node of this host, by the id that its WanVideoWrapper twin has, or its own where it has no twin."""
        own = wrapper_id.replace("WanVideo", "LatentLoom", 1) if self.host == "native" else wrapper_id
        return BY_ID.get(own) or BY_ID[wrapper_id]

    def run(self, wrapper_id: str, **inputs: Any) -> tuple[Any, ...]:
        """The values that the node returns; widgets that are not given have their defaults."""
        return self.run_and_show(wrapper_id, **inputs)[0]

    def run_and_show(self, wrapper_id: str, **inputs: Any) -> tuple[tuple[Any, ...], Mapping[str, list[Any]]]:
        """The values, and the messages for the page."""
        node = self.node(wrapper_id)
        defaults = {part.name: part.default for part in node.inputs if isinstance(part, Widget)}
        return execute(node, {**defaults, **inputs}, "7")


def state_of(value: Any) -> Any:
    """A deep copy of what a node is given, for comparison afterwards: tensors by value, objects by identity."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: state_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [state_of(part) for part in value]
    return value


def assert_same_state(value: Any, state: Any) -> None:
    """Return if nothing changed since `state_of`."""
    if isinstance(value, Tensor):
        assert torch.equal(value, state)
    elif isinstance(value, dict):
        assert value.keys() == state.keys()
        for key, part in value.items():
            assert_same_state(part, state[key])
    elif isinstance(value, list | tuple):
        assert len(value) == len(state)
        for part, kept in zip(value, state, strict=True):
            assert_same_state(part, kept)
    else:
        assert value == state or value is state
