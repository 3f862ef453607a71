"""ComfyUI-WanVideoWrapper's model is steered as diffusers' is, by hooks that do nothing without a plan."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from steering.host_plans import (
    CASES,
    INJECTED,
    PROMPTS,
    SECOND_RUN_CASES,
    TIMESTEP,
    assert_same,
    clips,
    operation,
    steered,
)
from steering.wan_video_wrapper_model import OldWrapperBlock, WrapperPatcher, WrapperWan
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.steering.hosts import wan_video_wrapper
from latentloom.steering.hosts.official import CarriedPlan
from latentloom.steering.hosts.wan_video_wrapper import PLAN
from latentloom.steering.plan import ActivationsPayload, DirectionPayload, Operation, Plan
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

#: Patchers are known to the host by their interface alone.
install: Callable[..., Any] = wan_video_wrapper.install


@pytest.fixture
def patcher(micro_wan: WanPipeline) -> WrapperPatcher:
    return WrapperPatcher(WrapperWan.from_diffusers(micro_wan.transformer))


def predict(patcher: Any, pipeline: WanPipeline, rows: tuple[int, ...] = (0,), **settings: Any) -> Tensor:
    text = pipeline.encode([PROMPTS[row] for row in rows])
    return patcher.predict(clips()[list(rows)], TIMESTEP, text, **settings)


def state_of(model: nn.Module) -> list[dict[str, Any]]:
    """Everything that a run could leave in a model."""
    kept = ("_forward_hooks", "_forward_pre_hooks")
    return [
        {name: list(value) if name in kept else id(value) for name, value in vars(part).items()}
        for part in model.modules()
    ]


def test_the_stand_in_is_the_model(micro_wan, patcher):
    assert_same(predict(patcher, micro_wan), steered(micro_wan, None))


@pytest.mark.parametrize(("site", "method", "payload"), CASES + SECOND_RUN_CASES)
def test_a_plan_does_what_it_does_through_diffusers(micro_wan, patcher, site, method, payload):
    plan = Plan((operation(micro_wan, site, method, payload),))
    expected = steered(micro_wan, plan)
    assert_same(predict(install(patcher, plan), micro_wan), expected)
    assert (expected - steered(micro_wan, None)).abs().max() > 0.02


@pytest.mark.parametrize("site", ["hidden_states", "attention_output"])
def test_a_second_run_leaves_caches_and_inputs_alone(micro_wan, patcher, site):
    """Some variants of the model write to their image condition, and a cache skips calls for what earlier ones gave."""
    model, seen = patcher.model.diffusion_model, []
    model.enable_teacache = True
    condition = [torch.zeros(16, 3, 12, 12)]

    def before(module: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        kwargs = dict(kwargs)
        seen.append((model.enable_teacache, kwargs.pop("y")[0].add_(1)))
        return args, kwargs

    clone = install(patcher, Plan((operation(micro_wan, site, "replace", "prompt"),)))
    with model.register_forward_pre_hook(before, with_kwargs=True):
        answer, _, _ = model(
            x=list(clips()[:1]),
            t=torch.tensor([TIMESTEP]),
            context=micro_wan.encode(PROMPTS[:1]).to_list(),
            y=condition,
            transformer_options=clone.model_options["transformer_options"],
        )
    assert [cached for cached, _ in seen] == [False, True]
    assert torch.equal(condition[0], torch.ones(16, 3, 12, 12))
    assert torch.equal(answer[0], predict(clone, micro_wan)[0])


def test_a_prompt_is_recorded_for_both_sides_of_a_batch(micro_wan, patcher):
    clone = install(patcher, Plan((operation(micro_wan, "hidden_states", "lerp", "prompt"),)))
    batch = predict(clone, micro_wan, (0, 1))
    assert_same(batch[[0]], steered(micro_wan, clone.model_options["transformer_options"][PLAN].plan, 0))
    assert_same(batch[[1]], steered(micro_wan, None, 1))


def test_without_a_plan_the_hooks_change_no_bit_and_keep_nothing(micro_wan, patcher):
    model = patcher.model.diffusion_model
    plain = predict(patcher, micro_wan)
    clone = install(patcher, Plan((operation(micro_wan, "attention_output", "add", "direction"),)))
    installed = state_of(model)
    assert torch.equal(predict(patcher, micro_wan), plain)
    assert not torch.equal(predict(clone, micro_wan), plain)
    assert torch.equal(predict(patcher, micro_wan), plain)
    assert state_of(model) == installed
    assert len(model._forward_pre_hooks) == 1
    install(clone, Plan((operation(micro_wan),)))
    assert [len(part["_forward_hooks"]) for part in state_of(model)] == [
        len(part["_forward_hooks"]) for part in installed
    ]


def test_clones_of_one_model_do_not_leak_into_each_other(micro_wan, patcher):
    kinds = [
        ("context", "lerp", "prompt"),
        ("hidden_states", "add", "direction"),
        ("attention_output", "ablate", "direction"),
    ]
    plans = [Plan((operation(micro_wan, *kind),)) for kind in kinds]
    clones = [install(patcher, plan) for plan in plans]
    for clone, plan in [*zip(clones, plans, strict=True)] * 2:
        assert_same(predict(clone, micro_wan), steered(micro_wan, plan))
    assert PLAN not in patcher.model_options["transformer_options"]
    copied = clones[0].clone().clone()
    assert copied.model_options["transformer_options"][PLAN].plan is plans[0]
    assert torch.equal(predict(copied, micro_wan), predict(clones[0], micro_wan))


def test_a_plan_on_a_plan_acts_after_it(micro_wan, patcher):
    parts = (
        operation(micro_wan, "hidden_states", "add", "direction"),
        operation(micro_wan, "hidden_states", "rotate", "plane"),
    )
    nested = install(install(patcher, Plan(parts[:1])), Plan(parts[1:]))
    assert_same(predict(nested, micro_wan), steered(micro_wan, Plan(parts)))


@pytest.mark.parametrize("side", ["cond", "uncond", "both"])
def test_only_the_plans_side_changes_in_calls_of_its_own_and_in_one_batch(micro_wan, patcher, side):
    kinds = [
        ("context", "lerp", "prompt"),
        ("hidden_states", "add", "direction"),
        ("attention_output", "ablate", "direction"),
    ]
    clone = install(patcher, Plan(tuple(operation(micro_wan, *kind, side=side) for kind in kinds)))
    always = Plan(tuple(operation(micro_wan, *kind) for kind in kinds))
    batch = predict(clone, micro_wan, (0, 1))
    for row, is_uncond in ((0, False), (1, True)):
        expected = steered(micro_wan, always if side == "both" or (side == "uncond") == is_uncond else None, row)
        assert_same(predict(clone, micro_wan, (row,), is_uncond=is_uncond), expected)
        assert_same(batch[[row]], expected)


def test_a_window_counts_the_hosts_own_steps(micro_wan, patcher):
    clone = install(patcher, Plan((operation(micro_wan, window=(0.5, 1.0)),)))
    plain = predict(patcher, micro_wan)
    acts = [not torch.equal(predict(clone, micro_wan, progress=step / 4), plain) for step in range(4)]
    assert acts == [False, False, True, True]


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing_behind(micro_wan, patcher, error):
    model = patcher.model.diffusion_model
    plain = predict(patcher, micro_wan)
    kinds = [(site, "add", "direction") for site in ("context", "hidden_states", "attention_output")]
    clone = install(patcher, Plan(tuple(operation(micro_wan, *kind) for kind in kinds)))
    installed = state_of(model)

    def fail(*_: Any) -> None:
        raise error

    with model.blocks[4].ffn.register_forward_hook(fail), pytest.raises(error):
        predict(clone, micro_wan)
    assert state_of(model) == installed
    assert torch.equal(predict(patcher, micro_wan), plain)


def test_a_block_that_works_in_place_does_not_change_the_payload(micro_wan, patcher):
    op = operation(micro_wan, "hidden_states", "replace", "activations")
    assert isinstance(op.payload, ActivationsPayload)
    before = {block: values.clone() for block, values in op.payload.activations.values.items()}
    clone = install(patcher, Plan((op,)))
    assert torch.equal(predict(clone, micro_wan), predict(clone, micro_wan))
    assert all(torch.equal(values, before[block]) for block, values in op.payload.activations.values.items())


def test_prompts_that_come_with_their_padding_have_the_same_length(micro_wan, patcher):
    clone = install(patcher, Plan((operation(micro_wan, "context", "add", "direction"),)))
    text = micro_wan.encode(PROMPTS[:1])
    padded = TextEmbeddings(text.padded(512)[0], torch.tensor([512]))
    latents = clips()[:1]
    assert torch.equal(clone.predict(latents, TIMESTEP, padded), clone.predict(latents, TIMESTEP, text))


def test_several_prompts_for_one_clip_are_all_replaced(micro_wan, patcher):
    latents, several = clips()[:1], micro_wan.encode([PROMPTS[0], PROMPTS[1]])
    whole = Operation("context", "replace", (1.0,) * 6, operation(micro_wan).payload)
    injected = patcher.predict(latents, TIMESTEP, micro_wan.encode(INJECTED))
    replaced = install(patcher, Plan((whole,))).predict(latents, TIMESTEP, several)
    assert_same(replaced, injected)
    clone = install(patcher, Plan((operation(micro_wan, "attention_output", "add", "direction"),)))
    with pytest.raises(ConfigError, match="attention_output takes one prompt and one image"):
        clone.predict(latents, TIMESTEP, several)


def test_installing_touches_no_weight(micro_wan):
    with torch.device("meta"):
        empty = WrapperWan(dict(micro_wan.transformer.config))
    plan = Plan((operation(micro_wan),))
    clone = install(WrapperPatcher(empty), plan)
    empty.to_empty(device="cpu").load_state_dict(WrapperWan.from_diffusers(micro_wan.transformer).state_dict())
    assert_same(predict(clone, micro_wan), steered(micro_wan, plan))


def test_weights_in_another_dtype_are_projected_in_it(micro_wan, patcher):
    patcher.model.diffusion_model.text_embedding.to(torch.bfloat16)
    embedding = patcher.model.diffusion_model.text_embedding
    seen: list[torch.dtype] = []
    embedding.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    embedding.register_forward_hook(lambda module, inputs, output: output.float())
    latents, text = clips()[:1], micro_wan.encode(PROMPTS[:1])
    text = text.to(dtype=torch.bfloat16)
    whole = Plan((Operation("context", "replace", (1.0,) * 6, operation(micro_wan).payload),))
    answer = install(patcher, whole).predict(latents, TIMESTEP, text)
    injected = patcher.predict(latents, TIMESTEP, micro_wan.encode(INJECTED).to(dtype=torch.bfloat16))
    assert_same(answer, injected)
    assert set(seen) == {torch.bfloat16}


def test_a_plan_for_another_model_and_an_old_host_are_refused(micro_wan, patcher):
    deep = Plan((Operation("context", "add", (1.0,) * 40, DirectionPayload(torch.ones(1, 128))),))
    with pytest.raises(ConfigError, match="for a model of 40 blocks and this one has 6"):
        install(patcher, deep)
    assert len(patcher.model.diffusion_model._forward_pre_hooks) == 0
    patcher.model_options["transformer_options"][PLAN] = CarriedPlan(deep)
    with pytest.raises(ConfigError, match=r"for models of \[6, 40\] blocks"):
        install(patcher, Plan((operation(micro_wan),)))

    class OldWan(WrapperWan):
        block = OldWrapperBlock

    with pytest.raises(ConfigError, match="hands no transformer_options to its blocks; update it"):
        install(WrapperPatcher(OldWan(dict(micro_wan.transformer.config))), Plan((operation(micro_wan),)))
