"""A tiny transformer with an adapter that changes what it says, as training would leave it."""

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from tiny_checkpoint import tiny_transformer
from torch import Tensor

from latentloom.finetune.adapter_files import save_adapter
from latentloom.finetune.lora import inject_lora, lora_targets

RANK = 4


def fresh() -> WanTransformer3DModel:
    """The same random weights every time."""
    torch.manual_seed(0)
    return tiny_transformer()


def train(targets: tuple[str, ...], blocks: tuple[int, int] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """What the transformer says with a trained adapter on it, in peft's layers, and the adapter."""
    transformer = fresh()
    names = lora_targets(2, blocks, targets, allow_self_attn=True)
    state = inject_lora(transformer, names, RANK, 0.1, torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in state.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return answer(transformer.eval()), {name: weight.detach() for name, weight in state.items()}


def save(folder: Path, state: dict[str, Tensor], expert: str | None = None) -> Path:
    return save_adapter(folder, state, rank=RANK, dropout=0.1, base="tiny", expert=expert)


@torch.no_grad()
def answer(transformer: WanTransformer3DModel) -> Tensor:
    """The transformer's output on fixed input."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, 4, 3, 4, 4, generator=generator)
    text = torch.randn(2, 5, 16, generator=generator)
    step = torch.tensor([400.0, 900.0])
    return transformer(hidden_states=latents, timestep=step, encoder_hidden_states=text, return_dict=False)[0]
