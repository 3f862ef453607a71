"""ComfyUI's own Wan model is steered as diffusers' is, and nothing of a run outlives it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from steering.comfy_native_model import COND, UNCOND, NativePatcher, NativeWan
from steering.host_plans import CASES, PROMPTS, SECOND_RUN_CASES, TIMESTEP, assert_same, clips, operation, steered
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.steering.hosts import comfy_native
from latentloom.steering.hosts.comfy_native import NativeWrapper, progress_of
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PromptPayload
from latentloom.wan.model_call import schedule_progress
from latentloom.wan.pipeline import WanPipeline

#: Patchers are known to the host by their interface alone.
install: Callable[..., Any] = comfy_native.install


@pytest.fixture
def patcher(micro_wan: WanPipeline) -> NativePatcher:
    return NativePatcher(NativeWan.from_diffusers(micro_wan.transformer))


def predict(patcher: Any, pipeline: WanPipeline, rows: tuple[int, ...] = (0,), **settings: Any) -> Tensor:
    text = pipeline.encode([PROMPTS[row] for row in rows])
    return patcher.predict(clips()[list(rows)], TIMESTEP, text, **settings)


def adding(site: str = "hidden_states", blocks: str = "2", seed: int = 1) -> Plan:
    vector = torch.randn(1, 128, generator=torch.Generator().manual_seed(seed)) * 5
    strengths = tuple(float(str(block) in blocks) for block in range(6))
    return Plan((Operation(site, "add", strengths, DirectionPayload(vector)),))  # pyright: ignore[reportArgumentType]


def hooks_of(model: nn.Module) -> list[int]:
    return [hook for part in model.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)]


def test_the_stand_in_is_the_model(micro_wan, patcher):
    assert_same(predict(patcher, micro_wan), steered(micro_wan, None))


@pytest.mark.parametrize(("site", "method", "payload"), CASES + SECOND_RUN_CASES)
def test_a_plan_does_what_it_does_through_diffusers(micro_wan, patcher, site, method, payload):
    plan = Plan((operation(micro_wan, site, method, payload),))
    expected = steered(micro_wan, plan)
    assert (expected - steered(micro_wan, None)).abs().max() > 0.02
    assert_same(predict(install(patcher, plan), micro_wan), expected)


def test_operations_on_one_site_act_in_their_order(micro_wan, patcher):
    both = [
        operation(micro_wan, "hidden_states", method, kind)
        for method, kind in (("lerp", "prompt"), ("rotate", "plane"))
    ]
    results = []
    for operations in (both, both[::-1]):
        expected = steered(micro_wan, Plan(tuple(operations)))
        nested = install(install(patcher, Plan((operations[0],))), Plan((operations[1],)))
        assert_same(predict(install(patcher, Plan(tuple(operations))), micro_wan), expected)
        if operations[0].method == "lerp":  # a prompt that is recorded within another plan is recorded with its edits
            assert_same(predict(nested, micro_wan), expected)
        results.append(expected)
    assert (results[0] - results[1]).abs().max() > 0.05


@pytest.mark.parametrize("order", [(COND, UNCOND), (UNCOND, COND)])
@pytest.mark.parametrize("side", ["cond", "uncond", "both"])
def test_only_the_plans_side_of_a_batch_changes_wherever_it_stands(micro_wan, patcher, order, side):
    kinds = [
        ("context", "lerp", "prompt"),
        ("hidden_states", "add", "direction"),
        ("attention_output", "lerp", "activations"),
    ]
    plan = Plan(tuple(operation(micro_wan, *kind, side=side) for kind in kinds))
    rows = tuple(0 if part == COND else 1 for part in order)
    answers = predict(install(patcher, plan), micro_wan, rows, cond_or_uncond=order)
    always = Plan(tuple(operation(micro_wan, *kind, side="both") for kind in kinds))
    for answer, row, part in zip(answers, rows, order, strict=True):
        changes = side == "both" or (side == "cond") == (part == COND)
        assert_same(answer[None], steered(micro_wan, always if changes else None, row))


def test_each_clip_of_a_part_takes_its_own_prompt(micro_wan, patcher):
    text = micro_wan.encode(["a green cross moves up", "A small triangle. It is yellow."])
    op = operation(micro_wan)
    plan = Plan((replace(op, payload=PromptPayload(text)),))
    answers = predict(install(patcher, plan), micro_wan, (1, 1, 0, 1), cond_or_uncond=[UNCOND, COND])
    for answer, payload, row in ((answers[2], 0, 0), (answers[3], 1, 1)):
        alone = Plan((replace(op, payload=PromptPayload(text[[payload]])),))
        assert_same(answer[None], steered(micro_wan, alone, row))
    with pytest.raises(ConfigError, match="2 prompts and the run has more clips"):
        predict(install(patcher, plan), micro_wan, (0, 0, 1))


def test_what_other_nodes_replaced_and_wrapped_still_acts(micro_wan, patcher):
    seen: list[str] = []

    def double(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        seen.append("replacement")
        given = args["img"]
        return {"img": given + 0.5 * (extra["original_block"](args)["img"] - given)}

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        seen.append("wrapper")
        return executor(*args, **kwargs) + 1

    patcher.replace_block(2, double)
    patcher.add_wrapper_with_key("diffusion_model", "another", wrapper)
    before = predict(patcher, micro_wan)
    seen.clear()
    during = predict(install(patcher, adding(blocks="24")), micro_wan)
    assert seen == ["wrapper", "replacement"]
    assert (during - before).abs().max() > 0.05
    untouched = Plan((operation(micro_wan, window=(0.9, 1.0)),))
    assert torch.equal(predict(install(patcher, untouched), micro_wan), before)
    # the plan's edit is what the replaced block is given, so the replacement's own sum is with what came before it
    options = patcher.model_options["transformer_options"]["patches_replace"]["dit"]
    assert list(options) == [("double_block", 2)]
    assert options["double_block", 2] is double


def test_clones_of_one_model_do_not_leak_into_each_other(micro_wan, patcher):
    plain = predict(patcher, micro_wan)
    plans = [adding(seed=1), adding("attention_output", seed=2)]
    first, second = (install(patcher, plan) for plan in plans)
    assert first.model is second.model is patcher.model
    for _ in range(2):
        for clone, plan in ((first, plans[0]), (second, plans[1])):
            assert_same(predict(clone, micro_wan), steered(micro_wan, plan))
        assert torch.equal(predict(patcher, micro_wan), plain)
    assert hooks_of(patcher.model.diffusion_model) == []


def test_copies_of_the_options_carry_the_same_plan(micro_wan, patcher):
    plan = adding()
    clone = install(patcher, plan)
    copied = copy.deepcopy(clone.wrappers)["diffusion_model"]["latentloom"][0]
    assert copied.plan is plan
    clone.model_options["transformer_options"]["wrappers"] = clone.wrappers
    assert torch.equal(predict(clone.clone(), micro_wan), predict(clone, micro_wan))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_interrupted_run_leaves_nothing_behind(micro_wan, patcher, error):
    plain = predict(patcher, micro_wan)

    def fail(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        raise error

    failing = patcher.clone()
    failing.replace_block(4, fail)
    plan = Plan((operation(micro_wan, "attention_output", "lerp", "prompt"), *adding("context").operations))
    with pytest.raises(error):
        predict(install(failing, plan), micro_wan)
    assert hooks_of(patcher.model.diffusion_model) == []
    assert torch.equal(predict(patcher, micro_wan), plain)


def test_installing_touches_no_weight(micro_wan):
    with torch.device("meta"):
        empty = NativeWan(dict(micro_wan.transformer.config))
    clone = install(NativePatcher(empty), Plan((operation(micro_wan),)))
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(NativeWan.from_diffusers(micro_wan.transformer).state_dict())
    expected = steered(micro_wan, Plan((operation(micro_wan),)))
    assert_same(predict(clone, micro_wan), expected)


@pytest.mark.parametrize("method", ["lerp", "add"])
def test_image_rows_before_the_text_stay_as_they_are(micro_wan, patcher, method):
    model = patcher.model.diffusion_model
    model.img_emb = nn.Linear(32, 128)
    seen: list[Tensor] = []
    model.blocks[1].cross_attn.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    images = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(5))
    plan = Plan((operation(micro_wan, "context", method, "prompt" if method == "lerp" else "direction"),))
    for one in (patcher, install(patcher, plan)):
        predict(one, micro_wan, clip_fea=images)
    before, after = seen
    length = int(micro_wan.encode(PROMPTS[:1]).lengths)
    assert before.shape == after.shape == (1, 9 + 512, 128)
    assert torch.equal(before[:, :9], after[:, :9])
    assert ((before - after)[0, 9 : 9 + length].norm(dim=1) > 0.1).all()


def test_padding_is_told_from_tokens_by_its_zeros(micro_wan, patcher):
    seen: list[Tensor] = []
    patcher.model.diffusion_model.blocks[2].cross_attn.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[1])
    )
    for one in (patcher, install(patcher, adding("context"))):
        predict(one, micro_wan, (0, 1))
    changed = (seen[0] != seen[1]).any(dim=2)
    assert changed.sum(dim=1).tolist() == micro_wan.encode(PROMPTS).lengths.tolist()


def test_a_plan_for_another_model_is_refused_at_once_and_in_the_call(micro_wan, patcher):
    deep = Plan((Operation("context", "add", (1.0,) * 40, DirectionPayload(torch.ones(1, 128))),))
    with pytest.raises(ConfigError, match="for a model of 40 blocks and this one has 6"):
        install(patcher, deep)
    clone = patcher.clone()
    clone.add_wrapper_with_key("diffusion_model", "latentloom", NativeWrapper(deep))
    with pytest.raises(ConfigError, match="for a model of 40 blocks and this one has 6"):
        predict(clone, micro_wan)
    with pytest.raises(ConfigError, match="Linear is no Wan model"):
        install(NativePatcher(nn.Linear(1, 1)), deep)


def test_a_window_is_a_share_of_the_whole_schedule(micro_wan, patcher):
    """At shift 3 a noise level of 0.75 is half-way; a second sampler that starts there is no new beginning."""
    early, late = (Plan((operation(micro_wan, window=window),)) for window in ((0.0, 0.5), (0.5, 1.0)))
    plain = predict(patcher, micro_wan)
    rest = torch.tensor([0.75, 0.6, 0.3, 0.0])
    for plan, timestep, acts in (
        (early, 750.0, False),
        (late, 750.0, True),
        (early, 800.0, True),
        (late, 800.0, False),
    ):
        text, latents = micro_wan.encode(PROMPTS[:1]), clips()[:1]
        before = patcher.predict(latents, timestep, text)
        after = install(patcher, plan).predict(latents, timestep, text, sample_sigmas=rest)
        assert torch.equal(before, after) is not acts
    assert torch.equal(predict(patcher, micro_wan), plain)


@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_progress_counts_the_steps_of_a_shifted_schedule(shift):
    evenly = torch.linspace(1, 0, 21)
    sigmas = shift * evenly / (1 + (shift - 1) * evenly)
    for step, sigma in enumerate(sigmas[:-1]):
        now = {"sigmas": sigma.expand(2), "sample_sigmas": sigmas}
        timestep = sigma.expand(2) * 1000
        assert progress_of(timestep, {**now, "latentloom_shift": shift}) == pytest.approx(step / 20, abs=1e-9)
        assert progress_of(timestep, {**now, "latentloom_shift": None}) == step / 20
        between = {"sigmas": (sigma + sigmas[step + 1]) / 2, "sample_sigmas": sigmas}
        assert progress_of(timestep, between) == (step + 1) / 20
        assert progress_of(timestep, {}) == pytest.approx(schedule_progress(float(sigma), 1.0), abs=1e-5)
