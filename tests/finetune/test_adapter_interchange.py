"""One adapter file in PEFT and in diffusers: what the transformer says is what it said while training."""

from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from finetune.trained_adapter import answer, fresh, save, train
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from latentloom.finetune.adapter_files import peft_state
from latentloom.finetune.lora import TARGETS, official_name

# what the document trains, one layer alone, the upper block only, and everything
CHOICES: dict[str, tuple[tuple[str, ...], tuple[int, int] | None]] = {
    "cross k v": (("cross_attn.k", "cross_attn.v"), None),
    "k alone": (("cross_attn.k",), None),
    "upper block": (("cross_attn.k", "cross_attn.v"), (1, 1)),
    "o and ffn": (("cross_attn.o", "ffn.0"), (0, 0)),
    "all": (TARGETS, None),
}


@pytest.fixture(params=CHOICES, scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Path]:
    """What a transformer says with the adapter it was trained with, and the adapter's folder."""
    output, state = train(*CHOICES[request.param])
    folder = tmp_path_factory.mktemp("adapter") / "epoch1"
    save(folder, state)
    return output, folder


def test_peft_reads_the_config_and_the_weights_with_no_difference(trained: tuple[Tensor, Path]) -> None:
    output, folder = trained
    transformer = fresh()
    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), transformer)
    outcome = set_peft_model_state_dict(transformer, peft_state(folder))
    assert outcome.unexpected_keys == []
    assert torch.equal(answer(transformer.eval()), output)


def test_peft_finds_the_layers_of_the_official_model_by_the_same_config(trained: tuple[Tensor, Path]) -> None:
    _, folder = trained
    official = in_official_names(fresh())
    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), official)
    stored = load_file(folder / "adapter_model.safetensors")
    state = {key.removeprefix("diffusion_model."): tensor for key, tensor in stored.items()}
    assert set_peft_model_state_dict(official, state).unexpected_keys == []
    held = {name: weight for name, weight in official.named_parameters() if ".lora_" in name}
    assert len(held) == len(stored)
    for name, weight in held.items():
        assert torch.equal(weight, stored["diffusion_model." + name.replace(".default", "")])


@pytest.mark.parametrize("given", ["folder", "file"])
def test_diffusers_loads_it_with_no_difference(trained: tuple[Tensor, Path], tiny_checkpoint: Path, given: str) -> None:
    output, folder = trained
    pipeline = WanPipeline.from_pretrained(tiny_checkpoint)
    pipeline.transformer = fresh()
    pipeline.load_lora_weights(str(folder if given == "folder" else folder / "adapter_model.safetensors"))
    assert torch.equal(answer(pipeline.transformer), output)


def test_diffusers_puts_each_expert_where_it_belongs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    output, state = train(("cross_attn.v",))
    save(tmp_path, state, expert="low")
    pipeline = WanPipeline.from_pretrained(tiny_checkpoint)
    pipeline.transformer, pipeline.transformer_2 = fresh(), fresh()
    pipeline.load_lora_weights(str(tmp_path / "adapter_model_low_noise.safetensors"), load_into_transformer_2=True)
    assert torch.equal(answer(pipeline.transformer_2), output)
    assert torch.equal(answer(pipeline.transformer), answer(fresh()))


def in_official_names(transformer: WanTransformer3DModel) -> nn.Module:
    """The blocks' linear layers under the official model's names."""
    root = nn.Module()
    for name, layer in transformer.blocks.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        place = root
        *path, last = official_name(f"blocks.{name}").split(".")
        for part in path:
            if not hasattr(place, part):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.add_module(last, layer)
    return root
