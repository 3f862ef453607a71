"""ComfyUI-WanVideoWrapper: WANVIDEOMODEL is a patcher, WANVIDEOTEXTEMBEDS a dictionary of prompts of two kinds."""

from collections.abc import Mapping
from typing import Any

import torch

from latentloom.comfy import core
from latentloom.comfy.hosts.host import CONFIG, Host, NoisedClip
from latentloom.comfy.hosts.wrapper_weights import read_linear
from latentloom.errors import ConfigError
from latentloom.steering import Plan
from latentloom.steering.hosts import wan_video_wrapper
from latentloom.steering.hosts.official import Listener, Recording, true_lengths
from latentloom.tensors import TextEmbeddings
from latentloom.wan.sampling import NUM_TRAIN_TIMESTEPS

POSITIVE = "prompt_embeds"
OF_PROMPTS = (CONFIG, POSITIVE, "negative_prompt_embeds")
"""What changes with every prompt, and what a run without guidance does not read."""


class WrapperHost(Host):
    """ComfyUI-WanVideoWrapper; see `Host`."""

    def read_text(self, text: Any) -> TextEmbeddings:
        prompts = text.get(POSITIVE)
        if prompts is None or not len(prompts):
            raise ConfigError("the text embeds hold no positive prompt; encode one")
        # without padding as a list, padded where ComfyUI's own encoder made them
        rows = [prompt.detach().to("cpu") for prompt in prompts]
        return TextEmbeddings.from_list([prompt[: int(true_lengths(prompt[None]))] for prompt in rows])

    def read_single(self, text: Any) -> TextEmbeddings:
        prompts = self.read_text(text)
        if len(prompts) > 1:
            raise ConfigError(f"the text embeds to inject hold {len(prompts)} prompts; link one")
        return prompts

    def beside_prompts(self, text: Any) -> Any:
        return {name: value for name, value in text.items() if name not in OF_PROMPTS}

    def write_text(self, like: Any, embeddings: TextEmbeddings, notes: Mapping[str, Any] | None = None) -> Any:
        dtype = like[POSITIVE][0].dtype
        return {**like, POSITIVE: [rows.to(dtype) for rows in embeddings.to_list()], **(notes or {})}

    def install(self, model: Any, plan: Plan, listen: Listener | None = None) -> Any:
        return wan_video_wrapper.install(model, plan, listen)

    @torch.no_grad()
    def project(self, model: Any, text: TextEmbeddings) -> TextEmbeddings:
        # its sampler loads the weights and takes them away again, so they are read from where they rest, and not moved
        embedder = model.model.diffusion_model.text_embedding
        rows = text.tokens.float()
        for index, layer in enumerate(embedder):
            if isinstance(layer, torch.nn.Linear):
                weight, bias = read_linear(model, layer, f"text_embedding.{index}")
                rows = torch.nn.functional.linear(rows, weight, bias)
            else:
                rows = layer(rows)
        return TextEmbeddings(rows, text.lengths)

    def encode(self, encoder: Any, prompt: str) -> TextEmbeddings:
        (text,) = _node("WanVideoTextEncode").process(positive_prompt=prompt, negative_prompt="", t5=encoder)
        return self.read_text(text)

    def _run_once(self, model: Any, text: Any, clip: NoisedClip, recording: Recording) -> float:
        left = 1 - clip.percent
        timestep = round(clip.shift * left / (1 + (clip.shift - 1) * left) * NUM_TRAIN_TIMESTEPS)
        # a little above, since the sampler rounds down
        sigmas = torch.tensor([min(1.0, (timestep + 0.5) / NUM_TRAIN_TIMESTEPS), 0.0])
        _node("WanVideoSampler").process(
            model=wan_video_wrapper.record(model, recording),
            image_embeds=clip.image_embeds or _empty(clip),
            shift=clip.shift,
            steps=1,
            cfg=1.0,
            seed=clip.seed,
            force_offload=True,
            scheduler="unipc",  # of all schedulers this one takes noise levels as they are, in every version
            riflex_freq_index=0,
            rope_function="comfy",  # as its node has it; the function's own default is another
            text_embeds=text,
            samples=clip.samples,
            sigmas=sigmas,
            add_noise_to_samples=True,
        )
        return float(timestep)


def _empty(clip: NoisedClip) -> dict[str, Any]:
    """As its node for empty embeds makes them; of a 5B model the sampler halves the size itself."""
    size = (clip.num_frames - 1) // 4 + 1, clip.height // 8, clip.width // 8
    return {"target_shape": (16, *size), "num_frames": clip.num_frames, "control_embeds": None}


def _node(name: str) -> Any:
    """One of the wrapper's own nodes."""
    found = core.module("nodes").NODE_CLASS_MAPPINGS.get(name)
    if found is None:
        raise ConfigError(f"there is no node {name}; install ComfyUI-WanVideoWrapper and restart ComfyUI")
    return found()
