"""ComfyUI's own Wan: MODEL is a `ModelPatcher`, CONDITIONING a list of [tensor, options]."""

from collections.abc import Mapping
from typing import Any

import torch

from latentloom.comfy import core
from latentloom.comfy.hosts.host import Host
from latentloom.errors import ConfigError
from latentloom.steering import Plan
from latentloom.steering.hosts import comfy_native
from latentloom.steering.hosts.official import Listener, true_lengths
from latentloom.tensors import TextEmbeddings


class NativeHost(Host):
    """ComfyUI itself; see `Host`."""

    def read_text(self, text: Any) -> TextEmbeddings:
        if not text:
            raise ConfigError("the conditioning is empty; encode a prompt")
        prompts = [rows.detach().to("cpu") for rows, _ in text]
        return TextEmbeddings.cat([TextEmbeddings.from_padded(rows, lengths=true_lengths(rows)) for rows in prompts])

    def write_text(self, like: Any, embeddings: TextEmbeddings, notes: Mapping[str, Any] | None = None) -> Any:
        counts = [len(rows) for rows, _ in like]
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
