"""Single weights of a model of ComfyUI-WanVideoWrapper, read from where they rest: the model or its checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.comfy import core
from latentloom.errors import ConfigError


def read_linear(patcher: Any, layer: nn.Linear, name: str) -> tuple[Float[Tensor, "O I"], Float[Tensor, "O"] | None]:
    """Weight and bias of a linear layer in float32 on the CPU, as its next run would use them; nothing is moved.

    Args:
        patcher: of the model.
        layer: its weights may be on the meta device, as they are before a run and after one that offloads.
        name: of the layer in the model.

    Raises:
        ConfigError: the weights are in no form that can be read without a run.
    """
    checkpoint = getattr(patcher.model, "pipeline", {}).get("sd") or {}
    weight = _float(layer.weight, checkpoint, f"{name}.weight", layer)
    scale = getattr(layer, "scale_weight", None)
    if scale is None:
        scale = checkpoint.get(f"{name}.scale_weight")
    if scale is not None:
        weight = weight * scale.float().cpu()
    weight = _patched(patcher, f"diffusion_model.{name}.weight", weight)
    bias = None if layer.bias is None else _float(layer.bias, checkpoint, f"{name}.bias", layer)
    return weight, bias


def _float(here: Tensor, checkpoint: Mapping[str, Tensor], name: str, layer: nn.Linear) -> Tensor:
    found = checkpoint.get(name) if here.is_meta else here
    shape = tuple(layer.weight.shape) if name.endswith("weight") else (layer.out_features,)
    if found is None or found.is_meta or not found.is_floating_point() or tuple(found.shape) != shape:
        raise ConfigError(
            f"{name} cannot be read before a run, as in a quantised GGUF; load the model from safetensors for this node"
        )
    return found.detach().float().cpu()


def _patched(patcher: Any, name: str, weight: Tensor) -> Tensor:
    """The weight with LoRAs that the sampler would apply as it runs."""
    patches = getattr(patcher, "patches", {}).get(name)
    if not patches:
        return weight
    if any(isinstance(patch[0], list) for patch in patches):
        raise ConfigError(f"a LoRA of {name} has a strength per step; give it one strength for this node")
    return core.module("comfy.lora").calculate_weight(patches, weight.clone(), name, intermediate_dtype=torch.float32)
