"""A trained adapter in a real ComfyUI, in both hosts: no difference from weights that it was merged into here."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from comfy_server.graphs import MODEL, SAMPLER, HostName, graph
from safetensors.torch import save_file
from torch import Tensor

from latentloom.finetune.adapter_files import merge_adapter, save_adapter
from latentloom.finetune.lora import TARGETS, diffusers_name, lora_targets
from latentloom.micro import default_checkpoint
from latentloom.wan.checkpoints import load_transformer

if TYPE_CHECKING:
    from comfy_server.api import Client, Graph
    from comfy_server.server import Server

RANK = 8
ADAPTER, APPLIED = "20", "21"
CHOICES: dict[str, tuple[tuple[str, ...], tuple[int, int] | None]] = {
    "cross": (("cross_attn.k", "cross_attn.v"), None),
    "upper": (("cross_attn.v",), (4, 5)),
    "all": (TARGETS, None),
}


def with_adapter(host: HostName, name: str, strength: float = 1.0) -> "Graph":
    """The clip's graph with a file of the server's `models/loras` on its model."""
    nodes = graph(host)
    if host == "native":
        given = {"model": [MODEL, 0], "lora_name": name, "strength_model": strength}
        nodes[APPLIED] = {"class_type": "LoraLoaderModelOnly", "inputs": given}
    else:
        chosen = {"lora": name, "strength": strength, "merge_loras": False, "low_mem_load": False}
        nodes[ADAPTER] = {"class_type": "WanVideoLoraSelect", "inputs": chosen}
        nodes[APPLIED] = {"class_type": "WanVideoSetLoRAs", "inputs": {"model": [MODEL, 0], "lora": [ADAPTER, 0]}}
    nodes[SAMPLER]["inputs"]["model"] = [APPLIED, 0]
    return nodes


@pytest.fixture(scope="module", params=CHOICES)
def files(request: pytest.FixtureRequest, server: "Server") -> tuple[str, str]:
    """Names in `models/loras`: an adapter as training saves it, and what merging it here adds to each weight, whole."""
    folder = server.base_directory / "models" / "loras"
    targets, blocks = CHOICES[request.param]
    file = save_adapter(
        folder / request.param, random_adapter(targets, blocks), rank=RANK, dropout=0.1, base="MicroWan"
    )
    differences = f"{request.param}_differences.safetensors"
    save_file(merged_differences(file, targets, blocks), folder / differences)
    return f"{request.param}/{file.name}", differences


def random_adapter(targets: tuple[str, ...], blocks: tuple[int, int] | None) -> dict[str, Tensor]:
    transformer = load_transformer(default_checkpoint(), dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in lora_targets(6, blocks, targets, allow_self_attn=True):
        wide, narrow = transformer.get_parameter(f"{name}.weight").shape
        state[f"{name}.lora_A.weight"] = torch.randn(RANK, narrow, generator=generator) / narrow**0.5
        state[f"{name}.lora_B.weight"] = torch.randn(wide, RANK, generator=generator) * 0.05
    return state


def merged_differences(adapter: Path, targets: tuple[str, ...], blocks: tuple[int, int] | None) -> dict[str, Tensor]:
    """Each weight's whole difference, times the identity; from weights that are zero, so that nothing rounds."""
    transformer = load_transformer(default_checkpoint(), dtype=torch.float32)
    for parameter in transformer.parameters():
        parameter.detach().zero_()
    merge_adapter(transformer, adapter)
    first, last = blocks or (0, 5)
    officials = [f"blocks.{n}.{target}" for n in range(first, last + 1) for target in targets]
    stored = {}
    for name in officials:
        difference = transformer.get_parameter(f"{diffusers_name(name)}.weight").detach()
        stored[f"diffusion_model.{name}.lora_up.weight"] = difference
        stored[f"diffusion_model.{name}.lora_down.weight"] = torch.eye(difference.shape[1])
    return stored


def test_it_is_the_merged_model(client: "Client", server: "Server", host: HostName, files: tuple[str, str]) -> None:
    adapter, differences = files
    plain = client.run(graph(host)).latent
    applied = client.run(with_adapter(host, adapter)).latent
    merged = client.run(with_adapter(host, differences)).latent
    assert (applied - plain).abs().max() > 0.05
    assert torch.equal(applied, merged)
    assert "lora key not loaded" not in server.log.read_text(errors="replace")
    assert torch.equal(client.run(graph(host)).latent, plain)


def test_strength_acts_as_it_does_here(client: "Client", host: HostName, files: tuple[str, str]) -> None:
    adapter, differences = files
    half, merged = (client.run(with_adapter(host, name, 0.5)).latent for name in (adapter, differences))
    assert torch.equal(half, merged)
    assert not torch.equal(half, client.run(with_adapter(host, adapter)).latent)
