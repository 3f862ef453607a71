"""What a host's sampler does in one step, as small stand-ins, and models that it can run."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from comfy_nodes.hosts import Rig
from torch import Tensor

from latentloom.tensors import TextEmbeddings

SIZE: dict[str, Any] = {"width": 96, "height": 96, "num_frames": 9}
"""Of the clips that `Rig.predict` gives the model: 3 x 12 x 12 latents, 108 tokens."""
SHIFT = 3.0


def noise(seed: int) -> Tensor:
    """Of a clip of this size."""
    return torch.randn(1, 16, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def model_to_run(rig: Rig) -> Any:
    """A model of the rig's host with what its sampler asks for."""
    patcher = rig.model()
    if rig.host == "native":
        sampling = SimpleNamespace(
            shift=SHIFT, percent_to_sigma=lambda percent: SHIFT * (1 - percent) / (1 + (SHIFT - 1) * (1 - percent))
        )
        objects = {"model_sampling": sampling, "latent_format": SimpleNamespace(latent_channels=16)}
        vars(patcher).update(get_model_object=objects.__getitem__)
    return patcher


def offer_samplers(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> list[dict[str, Any]]:
    """Put the samplers of both hosts in their modules' places; returns what they are called with."""
    calls: list[dict[str, Any]] = []

    def sample_custom(
        model: Any,
        noise: Tensor,
        cfg: float,
        sampler: str,
        sigmas: Tensor,
        positive: Any,
        negative: Any,
        latents: Any,
        **rest,
    ) -> Tensor:
        calls.append(
            {"cfg": cfg, "sampler": sampler, "sigmas": sigmas, "positive": positive, "latents": latents, **rest}
        )
        noised = sigmas[0] * noise + (1 - sigmas[0]) * latents
        return model.predict(noised, float(sigmas[0]) * 1000, rig.embeddings(positive), sample_sigmas=sigmas)

    class WanVideoSampler:
        def process(self, model: Any, image_embeds: Any, sigmas: Tensor, seed: int, text_embeds: Any, **rest) -> None:
            calls.append({"image_embeds": image_embeds, "sigmas": sigmas, "text_embeds": text_embeds, **rest})
            drawn = torch.randn(image_embeds["target_shape"], generator=torch.Generator().manual_seed(seed))[None]
            timestep = int(sigmas[0] * 1000)
            clean = 0 if rest["samples"] is None else rest["samples"]["samples"]
            noised = drawn if rest["samples"] is None else timestep / 1000 * drawn + (1 - timestep / 1000) * clean
            model.predict(noised, timestep, TextEmbeddings.from_list(text_embeds["prompt_embeds"]))

    class WanVideoTextEncode:
        def process(self, positive_prompt: str, negative_prompt: str, t5: Any) -> tuple[Any]:
            return (t5(positive_prompt, negative_prompt),)

    sampling, samplers, nodes = ModuleType("comfy.sample"), ModuleType("comfy.samplers"), ModuleType("nodes")
    vars(sampling).update(
        sample_custom=sample_custom,
        fix_empty_latent_channels=lambda model, latents: latents,
        prepare_noise=lambda latents, seed: torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)),
    )
    vars(samplers).update(sampler_object=str)
    offered = {"WanVideoSampler": WanVideoSampler, "WanVideoTextEncode": WanVideoTextEncode}
    vars(nodes).update(NODE_CLASS_MAPPINGS=offered)
    for module in (sampling, samplers, nodes):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def encoder(rig: Rig) -> Any:
    """A CLIP or a WANTEXTENCODER of MicroWan."""
    if rig.host == "wrapper":
        return rig.text
    return SimpleNamespace(tokenize=lambda text: {"t": text}, encode_from_tokens_scheduled=lambda t: rig.text(t["t"]))
