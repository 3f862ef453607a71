"""A plan beside the plain and the swapped-prompt run: what is sampled, and how far the steering moves the velocity."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.steering.apply import Applied, apply_plan, injected_text
from latentloom.steering.blocks import block_strengths
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PromptPayload
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings

PROMPTS = ["A small red circle moves to the left on a black background.", "blue square", "A large green cross."]
INJECTED = "A large yellow triangle moves up on a white background. It is large."
STEPS = 3
SIZE = ClipSize(5, 16, 16)


def settings(pipeline: WanPipeline, **changes: Any) -> SamplingSettings:
    return SamplingSettings.for_model(pipeline.facts, **{"steps": STEPS, **changes})


def injection(pipeline: WanPipeline, blocks: str = "all", strength: float | str = 1.0, **changes: Any) -> Operation:
    payload = changes.pop("payload", None) or PromptPayload(pipeline.encode([changes.pop("prompt", INJECTED)]))
    options = {"site": "context", "method": "lerp", **changes}
    return Operation(strengths=block_strengths(blocks, 6, strength), payload=payload, **options)


def direction(scale: float = 1.0) -> DirectionPayload:
    return DirectionPayload(scale * torch.randn(6, 128, generator=torch.Generator().manual_seed(0)))


def applied(pipeline: WanPipeline, *operations: Operation, prompts: list[str] = PROMPTS[:1], **options: Any) -> Applied:
    options = {"settings": settings(pipeline), "size": SIZE, "seeds": list(range(len(prompts))), **options}
    return apply_plan(pipeline, pipeline.encode(prompts), Plan(operations), **options)


def test_the_three_runs_are_those_of_the_pipeline(micro_wan):
    operation = injection(micro_wan, "late_blocks", 0.7)
    result = applied(micro_wan, operation, prompts=PROMPTS, batch_size=2)
    text = micro_wan.encode(PROMPTS)
    options = {"size": SIZE, "settings": settings(micro_wan), "seeds": [0, 1, 2], "batch_size": 2}
    assert torch.equal(result.plain.values, micro_wan.sample(text, **options).values)
    with steer(micro_wan, Plan((operation,))):
        assert torch.equal(result.steered.values, micro_wan.sample(text, **options).values)
    assert result.swapped is not None
    assert torch.equal(result.swapped.values, micro_wan.sample(micro_wan.encode([INJECTED] * 3), **options).values)
    assert result.equals_plain == [False] * 3
    assert result.equals_swapped == [False] * 3
    assert list(result.runs) == ["plain", "steered", "swapped"]


def test_all_blocks_at_full_strength_equal_the_swapped_run_and_none_the_plain_one(micro_wan):
    whole = applied(micro_wan, injection(micro_wan), prompts=PROMPTS)
    assert (whole.equals_plain, whole.equals_swapped) == ([False] * 3, [True] * 3)
    nothing = applied(micro_wan, injection(micro_wan, "none"), prompts=PROMPTS)
    assert (nothing.equals_plain, nothing.equals_swapped) == ([True] * 3, [False] * 3)
    assert nothing.velocity.tolist() == nothing.guided.tolist() == [[0.0] * STEPS] * 3


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("side", ["cond", "uncond", "both"])
def test_the_change_is_that_of_the_velocities_at_the_plain_latents(micro_wan, side, batched):
    operation = injection(micro_wan, "2-5", 0.5, side=side)
    options = settings(micro_wan, batched_guidance=batched)
    result = applied(micro_wan, operation, prompts=PROMPTS[:2], settings=options)

    text, blank = micro_wan.encode(PROMPTS[:2]), micro_wan.encode(["", ""])
    latents, timesteps = entering(micro_wan, options)
    for step, (values, timestep) in enumerate(zip(latents, timesteps, strict=True)):
        given, empty = (micro_wan.velocity(values, torch.tensor(timestep), each) for each in (text, blank))
        with steer(micro_wan, Plan((injection(micro_wan, "2-5", 0.5),))):  # `velocity` counts every row as conditional
            moved, emptied = (micro_wan.velocity(values, torch.tensor(timestep), each) for each in (text, blank))
        changed, blanked = (moved if side != "uncond" else given), (emptied if side != "cond" else empty)
        plain, steered = empty + 3.0 * (given - empty), blanked + 3.0 * (changed - blanked)
        torch.testing.assert_close(result.velocity[:, step], relative(given, changed), atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(result.guided[:, step], relative(plain, steered), atol=1e-4, rtol=1e-3)


def entering(pipeline: WanPipeline, options: SamplingSettings) -> tuple[list[torch.Tensor], list[float]]:
    """The latents that enter each step of the plain run of the first two prompts, and the timesteps."""
    latents: list[torch.Tensor] = []
    timesteps: list[float] = []

    @contextmanager
    def watch(call):
        if float(call.timestep) not in timesteps:
            timesteps.append(float(call.timestep))
            latents.append(call.latents[:2].clone())
        yield

    pipeline.around_call = watch
    try:
        pipeline.sample(pipeline.encode(PROMPTS[:2]), size=SIZE, settings=options, seeds=[0, 1])
    finally:
        pipeline.around_call = None
    return latents, timesteps


def relative(plain: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
    return (changed - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)


def test_without_guidance_both_changes_are_one(micro_wan):
    result = applied(micro_wan, injection(micro_wan, "5"), settings=settings(micro_wan, guidance=1.0))
    assert torch.equal(result.velocity, result.guided)
    assert (result.velocity > 0).all()


def test_the_change_is_zero_outside_the_window(micro_wan):
    result = applied(micro_wan, injection(micro_wan, window=(0.3, 0.6)))
    assert [change > 0 for change in result.velocity[0].tolist()] == [False, True, False]


def test_the_change_does_not_depend_on_batches(micro_wan):
    together = applied(micro_wan, injection(micro_wan, "3"), prompts=PROMPTS)
    alone = applied(micro_wan, injection(micro_wan, "3"), prompts=PROMPTS, batch_size=1)
    torch.testing.assert_close(together.velocity, alone.velocity, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.guided, alone.guided, atol=1e-5, rtol=1e-4)


def test_a_plan_without_a_prompt_has_no_swapped_run(micro_wan):
    result = applied(micro_wan, injection(micro_wan, method="add", payload=direction()))
    assert result.swapped is None
    assert result.equals_swapped is None
    assert list(result.runs) == ["plain", "steered"]
    assert result.equals_plain == [False]


def test_the_injected_text_is_what_all_conditional_injections_agree_on(micro_wan):
    context, states = injection(micro_wan), injection(micro_wan, site="hidden_states")
    other, negative = injection(micro_wan, prompt="A cross."), injection(micro_wan, side="uncond")
    found = injected_text(Plan((context, states)))
    assert found is not None
    assert torch.equal(found.tokens, micro_wan.encode([INJECTED]).tokens)
    assert injected_text(Plan((context, other))) is None
    assert injected_text(Plan((negative,))) is None
    assert injected_text(Plan((injection(micro_wan, prompt="A cross.", side="uncond"), context))) is not None


def test_plans_that_do_not_fit_are_refused_before_any_sampling(micro_wan):
    two = PromptPayload(micro_wan.encode(PROMPTS[:2]))
    for operation, message in [
        (injection(micro_wan, payload=two), "injects 2 prompts and there are 3 clips"),
        (injection(micro_wan, payload=DirectionPayload(torch.ones(6, 64)), method="add"), "64 channels"),
        (Operation("context", "add", (1.0,) * 30, direction()), "30 blocks and this one has 6"),
    ]:
        with pytest.raises(ConfigError, match=message):
            applied(micro_wan, operation, prompts=PROMPTS)
    assert micro_wan.around_call is None


def test_the_pipeline_is_as_before_even_after_a_failure_within(micro_wan):
    plain = applied(micro_wan, injection(micro_wan)).plain
    for operation in (injection(micro_wan), injection(micro_wan, site="hidden_states")):
        with pytest.raises(ConfigError), micro_wan_sampling_fails(micro_wan):
            applied(micro_wan, operation)
        assert micro_wan.around_call is None
    hooks = [h for part in micro_wan.transformer.modules() for h in (*part._forward_hooks, *part._forward_pre_hooks)]
    assert hooks == []
    assert torch.equal(applied(micro_wan, injection(micro_wan)).plain.values, plain.values)


@contextmanager
def micro_wan_sampling_fails(pipeline: WanPipeline):
    @contextmanager
    def fail(call):
        raise ConfigError("not today")
        yield

    pipeline.around_call = fail
    try:
        yield
    finally:
        pipeline.around_call = None
