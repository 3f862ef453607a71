"""Ways to fit a large model into little device memory: weights wait on the CPU, or rest in eight bits."""

import torch
from diffusers.hooks.group_offloading import apply_group_offloading
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import nn


def offload_groups(module: nn.Module, device: torch.device) -> None:
    """Keep a module's weights on the CPU and bring them to the device group by group as they are needed.

    A transformer moves block by block, with the next block copied while one computes where the device has streams;
    any other module moves leaf by leaf, because its blocks are nested or run outside of `forward`.
    """
    cpu = torch.device("cpu")
    if isinstance(module, WanTransformer3DModel):
        apply_group_offloading(
            module,
            onload_device=device,
            offload_device=cpu,
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
        )
        return
    apply_group_offloading(module, onload_device=device, offload_device=cpu, offload_type="leaf_level")


def store_in_fp8(transformer: WanTransformer3DModel, compute_dtype: torch.dtype) -> None:
    """Store a transformer's large weights as float8 (e4m3) and cast each layer up while it computes.

    Halves the memory of bfloat16 weights; embedders, norms and the modulation keep their precision.
    """
    transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute_dtype)
