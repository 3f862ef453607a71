"""ComfyUI-WanVideoWrapper: WANVIDEOMODEL is a patcher, WANVIDEOTEXTEMBEDS a dictionary of prompts of two kinds."""

from collections.abc import Mapping
from typing import Any

import torch

from latentloom.comfy.hosts.host import Host
from latentloom.errors import ConfigError
from latentloom.steering import Plan
from latentloom.steering.hosts import wan_video_wrapper
from latentloom.steering.hosts.official import Listener, true_lengths
from latentloom.tensors import TextEmbeddings

POSITIVE = "prompt_embeds"


class WrapperHost(Host):
    """ComfyUI-WanVideoWrapper; see `Host`."""

    def read_text(self, text: Any) -> TextEmbeddings:
        prompts = text.get(POSITIVE)
        if prompts is None or not len(prompts):
            raise ConfigError("the text embeds hold no positive prompt; encode one")
        # without padding as a list, padded where ComfyUI's own encoder made them
        rows = [prompt.detach().to("cpu") for prompt in prompts]
        return TextEmbeddings.from_list([prompt[: int(true_lengths(prompt[None]))] for prompt in rows])

    def write_text(self, like: Any, embeddings: TextEmbeddings, notes: Mapping[str, Any] | None = None) -> Any:
        dtype = like[POSITIVE][0].dtype
        return {**like, POSITIVE: [rows.to(dtype) for rows in embeddings.to_list()], **(notes or {})}

    def install(self, model: Any, plan: Plan, listen: Listener | None = None) -> Any:
        return wan_video_wrapper.install(model, plan, listen)

    @torch.no_grad()
    def project(self, model: Any, text: TextEmbeddings) -> TextEmbeddings:
        raise NotImplementedError
