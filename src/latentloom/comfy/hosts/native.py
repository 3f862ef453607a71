"""ComfyUI's own Wan: MODEL is a `ModelPatcher`, CONDITIONING a list of [tensor, options]."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentloom.comfy import core
from latentloom.comfy.hosts.host import CONFIG, Host, NoisedClip
from latentloom.errors import ConfigError
from latentloom.steering import Plan
from latentloom.steering.hosts import comfy_native
from latentloom.steering.hosts.official import Listener, Recording, true_lengths
from latentloom.tensors import TextEmbeddings
from latentloom.wan.sampling import NUM_TRAIN_TIMESTEPS

LIMITS = ("area", "mask", "start_percent", "end_percent")
"""Options by which a conditioning acts in a part of the clip or of the steps alone."""
OF_PROMPTS = (CONFIG, "pooled_output")
"""Options that change with every prompt."""


class NativeHost(Host):
    """ComfyUI itself; see `Host`."""

    def read_text(self, text: Any) -> TextEmbeddings:
        if not text:
            raise ConfigError("the conditioning is empty; encode a prompt")
        prompts = [rows.detach().to("cpu") for rows, _ in text]
        return TextEmbeddings.cat([TextEmbeddings.from_padded(rows, lengths=true_lengths(rows)) for rows in prompts])

    def read_single(self, text: Any) -> TextEmbeddings:
        if len(text) > 1:
            raise ConfigError(f"the conditioning to inject has {len(text)} entries; link one prompt")
        found = [name for _, options in text for name in LIMITS if options.get(name) is not None]
        if found:
            raise ConfigError(
                f"the conditioning to inject is limited by {found[0]}, which an injection cannot keep to; "
                "link the prompt itself"
            )
        return self.read_text(text)

    def beside_prompts(self, text: Any) -> Any:
        return [{name: value for name, value in options.items() if name not in OF_PROMPTS} for _, options in text]

    def write_text(self, like: Any, embeddings: TextEmbeddings, notes: Mapping[str, Any] | None = None) -> Any:
        # a single entry holds any number of prompts, which go to the clips of a batch
        counts = [len(embeddings)] if len(like) == 1 else [len(rows) for rows, _ in like]
        if sum(counts) != len(embeddings):
            raise ConfigError(f"{len(embeddings)} prompts for a conditioning of {sum(counts)}; give as many")
        written, first = [], 0
        for (rows, options), count in zip(like, counts, strict=True):
            prompts = embeddings[first : first + count]
            padded = prompts.padded(max(rows.shape[1], *prompts.lengths.tolist()))
            written.append([padded.to(rows.dtype), {**options, **(notes or {})}])
            first += count
        return written

    def install(self, model: Any, plan: Plan, listen: Listener | None = None) -> Any:
        return comfy_native.install(model, plan, listen)

    @torch.no_grad()
    def project(self, model: Any, text: TextEmbeddings) -> TextEmbeddings:
        core.module("comfy.model_management").load_models_gpu([model])
        embedder, dtype = model.model.diffusion_model.text_embedding, model.model.get_dtype()
        rows = embedder(text.tokens.to(model.load_device, model.model.manual_cast_dtype or dtype))
        return TextEmbeddings(rows.float().cpu(), text.lengths)

    def encode(self, encoder: Any, prompt: str) -> TextEmbeddings:
        return self.read_text(encoder.encode_from_tokens_scheduled(encoder.tokenize(prompt)))

    def _run_once(self, model: Any, text: Any, clip: NoisedClip, recording: Recording) -> float:
        sampling, samplers = core.module("comfy.sample"), core.module("comfy.samplers")
        sigma = float(model.get_model_object("model_sampling").percent_to_sigma(clip.percent))
        latents = sampling.fix_empty_latent_channels(model, _latents(model, clip))
        noise = sampling.prepare_noise(latents, clip.seed)
        rows, options = text[0]
        prompt = [[rows[:1], options]]
        # at a scale of 1 the sampler leaves the negative prompt alone, unless another node tells it not to
        sampling.sample_custom(
            comfy_native.record(model, recording),
            noise,
            1.0,
            samplers.sampler_object("euler"),
            torch.tensor([sigma, 0.0]),
            prompt,
            prompt,
            latents,
            disable_pbar=True,
            seed=clip.seed,
        )
        return sigma * NUM_TRAIN_TIMESTEPS


def _latents(model: Any, clip: NoisedClip) -> Tensor:
    """One clean clip [1, C, T, H, W]."""
    if clip.samples is not None:
        return clip.samples["samples"][:1]
    channels = model.get_model_object("latent_format").latent_channels
    stride = 16 if channels == 48 else 8  # the VAE of Wan 2.2 5B halves once more than the others
    return torch.zeros(1, channels, (clip.num_frames - 1) // 4 + 1, clip.height // stride, clip.width // stride)
