"""What a run needs of memory is known from shapes, and the row is cut where its largest stage is smallest."""

from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformer3DModel
from hypothesis import given
from hypothesis import strategies as st
from optimizer_kinds import KINDS
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraConfig
from torch import Tensor, nn
from transformers import UMT5Config, UMT5EncoderModel

from latentloom.errors import ConfigError
from latentloom.finetune import costs as cost_module
from latentloom.finetune.config import FinetuneConfig, OptimizerConfig
from latentloom.finetune.frozen_linear import store_frozen_in_fp8
from latentloom.finetune.optimizers import keeps_model_dtype, make_optimizer, optimizer_state, state_bytes
from latentloom.finetune.plan import PLAN_COLUMNS, LayerCost, known_costs, layer_costs, plan, plan_rows, split
from latentloom.finetune.stages.row import LayerName
from latentloom.wan import facts
from latentloom.wan.clip_size import ClipSize

LORA = {"adapter": {"rank": 16, "train_blocks_range": [20, 29]}, "optimizer": {"type": "AdamW8bitKahan"}}
ENCODER = {
    "model": {"cache_text_embeddings": False, "train_text_encoder": True},
    "optimizer": {"type": "AdamW8bitKahan"},
}


def config_of(options: dict, **more) -> FinetuneConfig:
    base = {"output_dir": "out", "dataset": "data"}
    adapter = {} if options == ENCODER else {"adapter": {"rank": 2}}
    return FinetuneConfig.model_validate(base | adapter | options | more)


def cost_of(size: int, kept: int = 0) -> LayerCost:
    return LayerCost("block", True, size, 0, size, 0, 0, kept, 0)


def largest(costs: list[LayerCost], ranges: list[tuple[int, int]], num_micro_batches: int) -> int:
    return max(
        sum(cost.frozen + cost.kept * min(len(ranges) - stage, num_micro_batches) for cost in costs[start:stop])
        for stage, (start, stop) in enumerate(ranges)
    )


@given(
    sizes=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), min_size=1, max_size=8),
    num_stages=st.integers(1, 8),
    num_micro_batches=st.integers(1, 4),
)
def test_no_other_cut_has_a_smaller_largest_stage(sizes, num_stages, num_micro_batches):
    costs = [cost_of(*size) for size in sizes]
    num_stages = min(num_stages, len(costs))
    ranges = split(costs, num_stages, num_micro_batches)
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == len(costs)
    assert all(start < stop for start, stop in ranges)
    others = (list(pairwise((0, *stops, len(costs)))) for stops in combinations(range(1, len(costs)), num_stages - 1))
    assert largest(costs, ranges, num_micro_batches) == min(largest(costs, cut, num_micro_batches) for cut in others)


@pytest.mark.parametrize("num_stages", [0, 4])
def test_stages_that_cannot_be_filled_are_refused(num_stages):
    with pytest.raises(ConfigError, match=rf"pipeline_stages = {num_stages} for a row of 3 layers; use 1 to 3"):
        split([cost_of(1)] * 3, num_stages)


@pytest.mark.parametrize("key", ["ti2v-5b", "t2v-a14b", "t2v-1.3b"])
def test_all_parameters_of_a_known_model_are_in_its_row(key):
    dims = facts.get(key).transformer
    assert dims is not None
    video = known_costs(config_of({}), key)
    assert len(video) == dims.num_layers + 2
    assert sum(cost.num_parameters - cost.num_trained for cost in video) == dims.num_parameters
    both = known_costs(config_of(ENCODER), key)
    assert len(both) == len(video) + 26
    text = sum(cost.num_parameters for cost in both) - dims.num_parameters
    assert text == pytest.approx(5.68e9, rel=0.001)
    assert sum(cost.num_trained for cost in both) == text


def test_the_lora_recipe_on_the_5b_fits_a_24_gib_card_only_with_its_blocks_swapped():
    clip = ClipSize(num_frames=1, height=704, width=1280)
    whole = plan(config_of(LORA), known_costs(config_of(LORA), "ti2v-5b", clip))
    assert len(whole) == 1
    # 10 blocks, k and v, 16 * (3072 + 3072) each, in bfloat16 with a gradient and two moments of a byte and a remainder
    assert whole[0].num_trained == 10 * 2 * 16 * (3072 + 3072)
    assert whole[0].weights == pytest.approx(2 * 5.0e9, rel=0.01)
    assert whole[0].training == pytest.approx(6.03 * whole[0].num_trained, rel=0.01)
    swapping = config_of(LORA, blocks_to_swap=24)
    [swapped] = plan(swapping, known_costs(swapping, "ti2v-5b", clip))
    assert swapped.waiting == pytest.approx(whole[0].weights * 24 / 30, rel=0.05)
    assert swapped.weights + swapped.waiting == whole[0].weights
    assert swapped.total == swapped.weights + swapped.training + swapped.activations


def test_only_what_is_behind_the_first_trained_layer_keeps_activations():
    costs = known_costs(config_of(LORA), "ti2v-5b")
    assert [cost.kept > 0 for cost in costs] == [False] * 21 + [True] * 11
    assert all(cost.working > 0 for cost in costs[:21])


def test_recomputing_keeps_a_layers_input_and_twice_the_clips_twice_the_activations():
    clip = ClipSize(num_frames=5, height=704, width=1280)
    block = known_costs(config_of(LORA), "ti2v-5b", clip)[25]
    recomputed = known_costs(config_of(LORA, activation_checkpointing=True), "ti2v-5b", clip)[25]
    assert recomputed.kept == 2 * 22 * 40 * 3072 * 2
    assert recomputed.working == block.kept
    double = known_costs(config_of(LORA, micro_batch_size_per_gpu=2), "ti2v-5b", clip)[25]
    assert double.kept == 2 * block.kept


def test_two_stages_share_a_large_model_evenly_and_the_first_holds_two_micro_batches():
    config = config_of(LORA, pipeline_stages=2, gradient_accumulation_steps=4, activation_checkpointing=True)
    stages = plan(config, known_costs(config, "t2v-a14b"))
    assert sum(stage.num_parameters - stage.num_trained for stage in stages) == pytest.approx(14.29e9, rel=0.001)
    assert max(stage.total for stage in stages) < 1.1 * min(stage.total for stage in stages)
    assert stages[0].layers[0] == "video input"
    assert stages[1].layers[-1] == "video output"


def test_the_plan_is_printed_with_a_cell_for_every_column():
    config = config_of(LORA, pipeline_stages=3, blocks_to_swap=6)
    rows = plan_rows(plan(config, known_costs(config, "ti2v-5b", ClipSize(num_frames=1, height=32, width=32))))
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert all(len(row) == len(PLAN_COLUMNS) for row in rows)
    assert rows[0][1] == "video input to video block 9"
    assert rows[0][3] == "0"
    [whole] = plan_rows(plan(config_of(LORA), known_costs(config_of(LORA), "ti2v-5b")))
    assert whole[2:5] == ("5.00 B", "1.97 M", "9.34")


@pytest.mark.parametrize("options", [{}, ENCODER])
def test_a_checkpoints_row_is_costed_from_its_headers(tiny_checkpoint: Path, options):
    costs = layer_costs(config_of(options), tiny_checkpoint)
    names = [cost.name for cost in costs]
    video = ["video input", "video block 0", "video block 1", "video output"]
    assert names[-4:] == video
    assert names[:-4] == (["text input", "text block 0", "text block 1", "text output"] if options == ENCODER else [])


def test_float8_halves_what_the_blocks_weigh():
    wide = known_costs(config_of({}), "ti2v-5b")
    narrow = known_costs(config_of({"model": {"transformer_dtype": "float8"}}), "ti2v-5b")
    assert narrow[1].frozen == pytest.approx(wide[1].frozen / 2, rel=0.01)
    assert narrow[0].frozen == wide[0].frozen


def small_transformer() -> WanTransformer3DModel:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        ffn_dim=160,
        num_layers=1,
        text_dim=64,
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("in_fp8", [False, True])
def test_frozen_weights_weigh_what_they_are_counted_as(dtype, in_fp8):
    options = {"model": {"dtype": dtype, "transformer_dtype": "float8" if in_fp8 else None}}
    config = config_of(options, mixed_precision="none")
    transformer = small_transformer().requires_grad_(False)
    for name, parameter in transformer.named_parameters():
        if not set(WanTransformer3DModel._keep_in_fp32_modules) & set(name.split(".")):
            parameter.data = parameter.data.to(getattr(torch, dtype))
    counted = sum(cost.frozen for cost in cost_module._costs(config, transformer, None, 16))
    if in_fp8:
        store_frozen_in_fp8(transformer, getattr(torch, dtype))
    scales = [buffer for name, buffer in transformer.named_buffers() if name.endswith("weight_scale")]
    assert counted == sum(tensor.nbytes for tensor in [*transformer.parameters(), *scales])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(64, 72), (64, 64), (8, 9), (300,)])
def test_optimizers_keep_as_many_bytes_as_they_are_counted_to(kind, shape):
    config = OptimizerConfig(type=kind)
    weight = nn.Parameter(torch.randn(shape).to(torch.bfloat16 if keeps_model_dtype(config) else torch.float32))
    optimizer = make_optimizer(config, {"dit": [("w", weight)]})
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = sum(value.nbytes for value in optimizer_state(optimizer, {"w": weight}).values() if value.ndim)
    assert state_bytes(config, "w", shape, weight.element_size()) == kept


def kept_by(parameters: list[nn.Parameter], compute) -> int:
    """Bytes of what autograd keeps of a computation, without the weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()
    del result
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in own)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("by_token", [False, True])
def test_a_video_block_keeps_about_what_is_counted(dtype, by_token):
    options = {"model": {"dtype": dtype, "first_frame_prob": 0.5 if by_token else 0.0}}
    transformer = small_transformer().requires_grad_(False)
    counted, _ = cost_module._video_activations(
        config_of(options, mixed_precision="none"), transformer, LayerName("video", 0), 2000
    )
    block = transformer.blocks[0]
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["attn2.to_k", "attn2.to_v"]), block)
    for part in (block.attn1, block.attn2, block.ffn):
        part.to(getattr(torch, dtype))
    rotary = WanRotaryPosEmbed(32, (1, 2, 2), 1024)(torch.empty(1, 1, 5, 40, 40))
    hidden, context = torch.randn(1, 2000, 64), torch.randn(1, 512, 64)
    modulation = torch.randn(1, 2000, 6, 64) if by_token else torch.randn(1, 6, 64)
    hidden, context = hidden.to(getattr(torch, dtype)).requires_grad_(), context.to(getattr(torch, dtype))
    kept = kept_by(list(block.parameters()), lambda: block(hidden, context, modulation, rotary))
    assert counted == pytest.approx(kept, rel=0.12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_text_block_keeps_about_what_is_counted(dtype):
    sizes = UMT5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=160, num_layers=1, num_heads=4, dropout_rate=0.0)
    encoder = UMT5EncoderModel(sizes).to(getattr(torch, dtype)).train()
    config = config_of({"model": {"dtype": dtype}}, mixed_precision="none")
    counted, _ = cost_module._text_activations(config, encoder, LayerName("text", 0))
    block = encoder.encoder.block[0]
    hidden = torch.randn(1, 512, 64, dtype=getattr(torch, dtype), requires_grad=True)
    assert counted == pytest.approx(kept_by(list(block.parameters()), lambda: block(hidden)), rel=0.35)
