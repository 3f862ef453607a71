"""The plan of a training: exact numbers of weights, memory by hand, what is kept for the backward pass, refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_backbones import tiny_tokenizer
from tiny_bridge import make_training
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import BridgeConfig, ModelConfig
from latentloom.bridge.known_backbones import known_config
from latentloom.bridge.parts import default_layers
from latentloom.bridge.plan import TrainingPlan, plan_training
from latentloom.bridge.plan_memory import layer_bytes
from latentloom.bridge.trainable import prepare_backbone
from latentloom.errors import ConfigError, FileError

WEDLM = "tencent/WeDLM-8B-Base"
#: Positions of a text whose kept tensors are counted.
LENGTH = 50
EVERYTHING = {"freeze_backbone": False, "lora": {"rank": 0}}


def planned(model: dict[str, Any], processes: int = 1, **training: Any) -> TrainingPlan:
    return plan_training(BridgeConfig.model_validate({"model": model, "training": training}), processes)


@pytest.mark.parametrize(
    ("name", "num"),
    [
        (WEDLM, 8_190_735_360),
        ("tencent/WeDLM-7B-Instruct", 7_615_616_512),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("smollm2", 134_515_008),
    ],
)
def test_a_known_backbone_has_its_number_of_weights_without_a_file(name: str, num: int):
    plan = planned({"pretrained_model_name_or_path": name, "latent_dim": 1024})
    assert plan.num_backbone == num
    assert plan.source.startswith("known facts")


def test_trained_parts_are_counted_as_by_hand():
    plan = planned({"pretrained_model_name_or_path": WEDLM, "latent_dim": 1024, "lora": {"rank": 8}}, task="joint")
    width, inner, layers = 4096, 12_288, 36
    assert plan.trained == {
        "prefix": 1024 * 3072 + 3072 + 3072 * 4 * width + 4 * width + 4,
        "head": _num_head(),
        # q and o: 4096 both ways, k and v to 1024, gate and up to 12,288, down from there
        "adapter": layers * 8 * (2 * (width + width) + 2 * (width + 1024) + 3 * (width + inner)),
        "unfrozen layers": 0,
        "output layer": 0,
    }
    a_layer = width * 128 * (2 * 32 + 2 * 8) + 3 * width * inner + 2 * width + 2 * 128
    last_two = planned(
        {"pretrained_model_name_or_path": WEDLM, "latent_dim": 1024, "lora": {"rank": 0}, "unfreeze_layers": 2}
    )
    assert last_two.trained["unfrozen layers"] == 2 * a_layer + width
    assert layers * a_layer + 2 * 151_936 * width + width == plan.num_backbone


def test_the_memory_of_all_weights_in_training_is_as_by_hand():
    model = {"pretrained_model_name_or_path": WEDLM, "latent_dim": 1024, "freeze_lm_head": False, **EVERYTHING}
    plan = planned(model, 8, task="l2t")
    assert plan.fsdp is not None
    trained = sum(plan.trained.values())
    assert plan.trained["unfrozen layers"] + plan.trained["output layer"] == plan.num_backbone
    assert plan.ddp.weights == 4 * trained + 4 * _num_head()
    assert plan.ddp.gradients == 8 * trained
    assert plan.ddp.optimizer == 8 * trained
    in_layers = plan.num_backbone - 2 * 151_936 * 4096 - 4096
    assert plan.fsdp.optimizer == 8 * (trained - in_layers + in_layers // 8)
    assert plan.fsdp.weights == plan.ddp.weights - 4 * in_layers + 4 * in_layers // 8


def _num_head() -> int:
    """Weights of the head on WeDLM-8B: 1024 hidden channels, vectors of 1024."""
    return len(default_layers(36)) * 4096 * 1024 + 1024 + 1024 * 1024 + 1024


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ({"lora": {"rank": 2}}, "joint"),
        ({"lora": {"rank": 2}}, "t2l"),
        ({"lora": {"rank": 2}, "unfreeze_layers": 1}, "t2l"),
        ({"unfreeze_layers": 1, "lora": {"rank": 0}}, "l2t"),
        ({**EVERYTHING, "freeze_lm_head": False}, "joint"),
        (EVERYTHING, "t2l"),
    ],
)
def test_a_plan_trains_as_many_weights_as_the_training(
    model: dict[str, Any], task: str, tiny_backbone_folder: Path, tmp_path: Path
):
    base = {"pretrained_model_name_or_path": str(tiny_backbone_folder), "latent_dim": 12, **model}
    settings = {"model": base, "training": {"task": task, "dtype": "fp32", "cache_features": False}}
    plan = plan_training(BridgeConfig.model_validate(settings), 1)
    bridge = make_training(settings, tmp_path).bridge
    trained = [weight for weight in bridge.parameters() if weight.requires_grad]
    assert sum(plan.trained.values()) == sum(weight.numel() for weight in trained)
    assert plan.ddp.weights == sum(weight.numel() * weight.element_size() for weight in bridge.parameters())


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "model", [{"lora": {"rank": 0}}, {"lora": {"rank": 4}}, EVERYTHING], ids=["frozen", "adapter", "trained"]
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_what_a_layer_keeps_is_what_the_formula_says(
    kind: str, model: dict[str, Any], dtype: torch.dtype, padded: bool
):
    config = ModelConfig.model_validate(model)
    shapes = [_shape(kind, layers) for layers in (1, 2)]
    one, two = (_kept_bytes(shape, config, dtype, padded) for shape in shapes)
    lora = config.lora if config.lora.rank else None
    said = layer_bytes(shapes[0], dtype.itemsize, LENGTH, trained=not config.freeze_backbone, lora=lora)
    fewest = said if padded else 0.85 * said
    assert fewest <= two - one <= said


def test_what_does_not_fit_is_refused_with_both_numbers_and_the_way_that_would():
    model = {"pretrained_model_name_or_path": WEDLM, "latent_dim": 1024, **EVERYTHING}
    plan = planned(model, 8, train_batch_size=2)
    assert plan.fitting(80e9) == ["fsdp"]
    with pytest.raises(ConfigError, match=r"needs 21\d\.\d GB on each GPU with ddp over 8, and one has 80\.0 GB; set"):
        plan.require_fit(80e9)
    planned(model, 8, train_batch_size=2, parallel="fsdp").require_fit(80e9)
    with pytest.raises(ConfigError, match=r"and one has 8\.0 GB; lower training\.train_batch_size"):
        plan.require_fit(8e9)


def test_a_plan_says_what_it_lacks():
    with pytest.raises(ConfigError, match=r"set model\.latent_dim"):
        plan_training(BridgeConfig.model_validate({"data": {"train_json": "a.json"}}), 1)
    with pytest.raises(FileError, match="fetch"):
        planned({"pretrained_model_name_or_path": "nobody/unknown-model", "latent_dim": 8})
    with pytest.raises(ConfigError, match="give --processes"):
        planned({"latent_dim": 8}, parallel="fsdp")
    assert known_config("nobody/unknown-model") is None


def _shape(kind: str, layers: int) -> PreTrainedConfig:
    sizes: dict[str, Any] = {"vocab_size": 70, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 6}
    sizes |= {"num_key_value_heads": 2, "num_hidden_layers": layers}
    return LlamaConfig(**sizes) if kind == "llama" else Qwen3Config(**sizes, head_dim=32)


def _kept_bytes(shape: PreTrainedConfig, config: ModelConfig, dtype: torch.dtype, padded: bool) -> float:
    """Bytes per position of what a pass keeps for its backward pass, weights and their casts aside."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(shape, dtype=dtype, trust_remote_code=False)
    backbone = Backbone(made.eval().requires_grad_(False), tiny_tokenizer(with_bos=True), "tiny", "")
    prepare_backbone(backbone, config)
    weights = {tuple(weight.shape)[::order] for weight in made.parameters() for order in (1, -1)}
    batch, length = 2, LENGTH
    inputs = torch.randn(batch, length, 96, dtype=dtype, requires_grad=True)
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tuple(tensor.shape) not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, -5:] = 0
    autocast = torch.autocast("cpu", dtype, dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        backbone.decoder(inputs_embeds=inputs, attention_mask=mask if padded else None, use_cache=False)
    return sum(kept.values()) / (batch * length)
