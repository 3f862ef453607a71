"""Golden identities of steering MicroWan through diffusers, to the last bit."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.micro import default_checkpoint
from latentloom.steering.blocks import block_strengths
from latentloom.steering.capture import capture_activations
from latentloom.steering.embeddings.projected import boost_projection, inject_direct
from latentloom.steering.hosts.diffusers import bind, steer
from latentloom.steering.plan import (
    ActivationsPayload,
    DirectionPayload,
    Operation,
    Payload,
    Plan,
    PromptPayload,
    RowsPayload,
)
from latentloom.steering.projection import project, project_rows
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.pipeline import WanPipeline

PROMPTS = ["A small red circle moves to the left on a black background.", "blue square"]
INJECTED = ["A large green cross moves up on a white background. It is large.", "A small triangle."]
SEEDS = [1, 2]


def sample(pipeline: WanPipeline, prompts: list[str] = PROMPTS, plan: Plan | None = None, **settings: Any) -> Tensor:
    with steer(pipeline, plan) if plan is not None else nullcontext():
        text = pipeline.encode(prompts)
        options = {"steps": 3, "seeds": SEEDS[: len(prompts)], **settings}
        return pipeline.generate(text, **options)[1].values


def operation(pipeline: WanPipeline, blocks: str = "all", strength: float | str = 1.0, **changes: Any) -> Operation:
    payload = changes.pop("payload", None) or PromptPayload(pipeline.encode(INJECTED))
    settings = {"site": "context", "method": "lerp", **changes}
    return Operation(strengths=block_strengths(blocks, 6, strength), payload=payload, **settings)


def direction(seed: int = 0) -> DirectionPayload:
    return DirectionPayload(torch.randn(6, 128, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def plain(micro_wan: WanPipeline) -> Tensor:
    return sample(micro_wan)


@pytest.fixture(scope="module")
def swapped(micro_wan: WanPipeline) -> Tensor:
    return sample(micro_wan, INJECTED)


@pytest.mark.parametrize("site", ["context", "hidden_states", "attention_output"])
@pytest.mark.parametrize("method", ["lerp", "replace"])
def test_strength_zero_is_the_baseline(micro_wan, plain, site, method):
    assert torch.equal(
        sample(micro_wan, plan=Plan((operation(micro_wan, strength=0, site=site, method=method),))), plain
    )


@pytest.mark.parametrize("method", ["lerp", "replace"])
@pytest.mark.parametrize("site", ["context", "attention_output"])
def test_all_blocks_at_strength_one_is_sampling_with_the_injected_prompt(micro_wan, plain, swapped, site, method):
    steered = sample(micro_wan, plan=Plan((operation(micro_wan, site=site, method=method),)))
    assert torch.equal(steered, swapped)
    assert not torch.equal(plain, swapped)


def test_the_context_and_the_hidden_states_of_a_prompt_together_are_that_prompt(micro_wan, swapped):
    both = (operation(micro_wan, "5"), operation(micro_wan, "5", site="hidden_states"))
    assert torch.equal(sample(micro_wan, plan=Plan(both)), swapped)


def test_rows_of_the_models_width_are_the_prompt_that_they_were_projected_from(micro_wan, swapped):
    text = micro_wan.encode(INJECTED)
    with torch.no_grad():
        rows = TextEmbeddings.from_padded(
            project_rows(micro_wan.transformer, text.padded(int(text.lengths.max()))), lengths=text.lengths
        )
    steered = sample(micro_wan, plan=Plan((operation(micro_wan, payload=RowsPayload(rows)),)))
    torch.testing.assert_close(steered, swapped, atol=2e-4, rtol=1e-4)


def test_the_booster_and_the_direct_injector_give_rows_to_inject(micro_wan, plain, swapped):
    """Factor 1 is the other prompt; more of it, and a forced difference, are something else than either."""
    base, other = (project(micro_wan.transformer, micro_wan.encode(prompts)) for prompts in (PROMPTS, INJECTED))

    def sampled(rows: TextEmbeddings) -> Tensor:
        return sample(micro_wan, plan=Plan((operation(micro_wan, payload=RowsPayload(rows)),)))

    torch.testing.assert_close(sampled(boost_projection(base, other, 1.0)), swapped, atol=2e-4, rtol=1e-4)
    forced = [boost_projection(base, other, 10.0), inject_direct(base, other, "blend", 0.6)]
    clips = [plain, swapped, *map(sampled, forced)]
    assert all(clip.isfinite().all() for clip in clips)
    apart = [(one - another).norm() / one.norm() for row, one in enumerate(clips) for another in clips[:row]]
    assert min(apart) > 0.05


def test_the_model_is_as_before_on_leaving_and_after_an_exception(micro_wan, plain):
    plan = Plan((operation(micro_wan), operation(micro_wan, site="hidden_states", method="add", payload=direction())))
    with steer(micro_wan, plan):
        sample(micro_wan)
    assert torch.equal(sample(micro_wan), plain)
    with pytest.raises(KeyError), steer(micro_wan, plan):
        raise KeyError("inside")

    def fail(step: int, timestep: float, latents: Tensor) -> None:
        raise KeyError(step)

    with pytest.raises(KeyError), steer(micro_wan, plan):
        sample(micro_wan, callback=fail)
    assert torch.equal(sample(micro_wan), plain)
    hooks = [
        hook for part in micro_wan.transformer.modules() for hook in (*part._forward_pre_hooks, *part._forward_hooks)
    ]
    assert hooks == []
    assert micro_wan.around_call is None


def test_two_plans_one_after_the_other_do_not_leak(micro_wan, swapped):
    first = Plan((operation(micro_wan, "0-3", 0.5), operation(micro_wan, method="add", payload=direction())))
    alone = sample(micro_wan, plan=first)
    assert torch.equal(sample(micro_wan, plan=Plan((operation(micro_wan),))), swapped)
    assert torch.equal(sample(micro_wan, plan=first), alone)


def test_nested_plans_act_as_one(micro_wan):
    outer, inner = operation(micro_wan, "0-2"), operation(micro_wan, "3-5", method="add", payload=direction())
    with steer(micro_wan, Plan((outer,))):
        nested = sample(micro_wan, plan=Plan((inner,)))
    assert torch.equal(nested, sample(micro_wan, plan=Plan((outer, inner))))


def test_a_plan_inside_another_edits_what_that_one_left_in_each_block(micro_wan):
    """Blocks share what they make of one context, and the outer plan gives every block another."""
    outer = operation(micro_wan, strength="0.1..0.9")
    other = PromptPayload(micro_wan.encode(["A purple cross.", "A cyan square moves down."]))
    inner = operation(micro_wan, strength=0.5, payload=other)
    with steer(micro_wan, Plan((outer,))):
        nested = sample(micro_wan, plan=Plan((inner,)))
    assert torch.equal(nested, sample(micro_wan, plan=Plan((outer, inner))))


def test_a_batch_of_mixed_lengths_is_its_clips_one_by_one(micro_wan):
    text = micro_wan.encode(INJECTED)
    assert len(set(text.lengths.tolist())) == 2
    together = sample(micro_wan, plan=Plan((operation(micro_wan, "2-5", 0.7),)))
    for row in range(2):
        alone = Plan((operation(micro_wan, "2-5", 0.7, payload=PromptPayload(text[[row]])),))
        one = sample(micro_wan, [PROMPTS[row]], alone, seeds=[SEEDS[row]])
        torch.testing.assert_close(together[[row]], one, atol=2e-4, rtol=1e-4)


def test_batches_of_one_clip_take_each_its_own_prompt(micro_wan, swapped):
    steered = sample(micro_wan, plan=Plan((operation(micro_wan),)), batch_size=1)
    torch.testing.assert_close(steered, swapped, atol=2e-4, rtol=1e-4)


def test_a_clip_beyond_the_payloads_prompts_is_refused(micro_wan):
    three = [*PROMPTS, "red"]
    with pytest.raises(ConfigError, match="2 prompts and the run has more clips"):
        sample(micro_wan, three, Plan((operation(micro_wan),)), seeds=[1, 2, 3])


def test_guidance_in_one_batch_changes_the_conditional_rows_alone(micro_wan, plain, swapped):
    injected = Plan((operation(micro_wan),))
    torch.testing.assert_close(sample(micro_wan, plan=injected, batched_guidance=True), swapped, atol=2e-4, rtol=1e-4)


def test_each_side_can_be_changed_alone(micro_wan, plain):
    """Injecting into the negative pass too makes guidance cancel part of the edit; alone it pushes the other way."""
    text = PromptPayload(micro_wan.encode(INJECTED))
    sides = {
        side: sample(micro_wan, plan=Plan((operation(micro_wan, payload=text, side=side),)))
        for side in ("cond", "uncond", "both")
    }
    assert len({float(latents.sum()) for latents in (plain, *sides.values())}) == 4
    unguided = [
        sample(micro_wan, guidance=1.0, plan=plan) for plan in (None, Plan((operation(micro_wan, side="uncond"),)))
    ]
    assert torch.equal(*unguided)


def test_a_window_acts_in_its_steps_and_no_others(micro_wan):
    half = Plan((operation(micro_wan, window=(0.5, 1.0)),))
    seen: list[Tensor] = []
    keep = [lambda step, timestep, latents: seen.append(latents.clone())]
    sample(micro_wan, steps=4, callback=keep[0])
    sample(micro_wan, steps=4, callback=keep[0], plan=half)
    # UniPC looks back one step; the first two steps know nothing of the second half
    assert [torch.equal(seen[step], seen[step + 4]) for step in range(4)] == [True, True, False, False]


def test_other_dtypes_attend_to_all_padding_and_keep_the_identities():
    pipeline = WanPipeline.load(default_checkpoint(), dtype=torch.bfloat16, device="cpu")
    steered = sample(pipeline, plan=Plan((operation(pipeline),)))
    assert torch.equal(steered, sample(pipeline, INJECTED))
    assert not torch.equal(steered, sample(pipeline))


def test_recorded_activations_put_back_where_they_were_change_nothing(micro_wan):
    latents = torch.randn(2, 16, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    text, timestep = micro_wan.encode(PROMPTS), torch.tensor(600.0)
    with torch.no_grad():
        before = micro_wan.velocity(latents, timestep, text)
        recorded = capture_activations(micro_wan, VideoLatents(latents), 600.0, text, [0, 3, 5])
        back = operation(micro_wan, "0,3,5", site="hidden_states", payload=ActivationsPayload(recorded))
        with steer(micro_wan, Plan((back,))):
            assert torch.equal(micro_wan.velocity(latents, timestep, text), before)
        only = ActivationsPayload(capture_activations(micro_wan, VideoLatents(latents[:1]), 600.0, text[[0]], [3]))
        with steer(micro_wan, Plan((operation(micro_wan, "3", site="hidden_states", payload=only),))):
            same = micro_wan.velocity(latents[[0, 0]], timestep, text[[0, 0]])
        torch.testing.assert_close(same, before[[0, 0]], atol=1e-4, rtol=1e-4)
        with pytest.raises(ConfigError, match="no activations of block 0"):
            operation(micro_wan, "0,3", site="hidden_states", payload=only)
        smaller = capture_activations(micro_wan, VideoLatents(latents[:, :, :, :6]), 600.0, text, [0])
        misfit = operation(micro_wan, "0", site="hidden_states", payload=ActivationsPayload(smaller))
        with pytest.raises(ConfigError, match="same number and size"), steer(micro_wan, Plan((misfit,))):
            micro_wan.velocity(latents, timestep, text)


@pytest.mark.parametrize("method", ["add", "add_keep_norm", "ablate"])
@pytest.mark.parametrize("site", ["context", "hidden_states", "attention_output"])
def test_directions_act_at_every_site_with_gradients(micro_wan, site, method):
    latents = torch.randn(1, 16, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    text, timestep = micro_wan.encode(PROMPTS[:1]), torch.tensor(600.0)
    vectors = direction().vectors.requires_grad_()
    with steer(micro_wan, Plan((operation(micro_wan, site=site, method=method, payload=DirectionPayload(vectors)),))):
        steered = micro_wan.velocity(latents, timestep, text)
    assert not torch.equal(steered, micro_wan.velocity(latents, timestep, text))
    steered.square().sum().backward()
    assert vectors.grad is not None
    assert (vectors.grad.norm(dim=1) > 0).all()


def test_a_constant_in_every_channel_is_erased_by_the_next_layer_norm(micro_wan):
    """Why a direction at the hidden states is fitted without its mean over channels."""
    latents = torch.randn(1, 16, 3, 12, 12, generator=torch.Generator().manual_seed(3))
    text, timestep = micro_wan.encode(PROMPTS[:1]), torch.tensor(600.0)

    def velocity(payload: Payload) -> Tensor:
        add = operation(micro_wan, "5", site="hidden_states", method="add", payload=payload)
        with torch.no_grad(), steer(micro_wan, Plan((add,))):
            return micro_wan.velocity(latents, timestep, text)

    with torch.no_grad():
        before = micro_wan.velocity(latents, timestep, text)
    constant, centred = torch.ones(1, 128), torch.ones(1, 128)
    centred[:, ::2] = -1
    torch.testing.assert_close(velocity(DirectionPayload(constant)), before, atol=1e-3, rtol=1e-3)
    assert (velocity(DirectionPayload(centred)) - before).norm() > 0.1 * before.norm()


def test_a_plan_for_another_model_is_refused_before_anything_runs(micro_wan):
    deep = Plan((Operation("context", "lerp", (1.0,) * 40, PromptPayload(micro_wan.encode(INJECTED))),))
    with pytest.raises(ConfigError, match="for a model of 40 blocks and this one has 6"), steer(micro_wan, deep):
        pytest.fail("the plan was taken")
    wide = operation(micro_wan, method="add", payload=DirectionPayload(torch.ones(1, 5120)))
    with pytest.raises(ConfigError, match="DirectionPayload of 5120 channels for a model that takes 128"):
        sample(micro_wan, plan=Plan((wide,)))


def test_binding_needs_no_weights_until_the_first_call(micro_wan):
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    with torch.device("meta"):
        empty = WanTransformer3DModel.from_config(micro_wan.transformer.config)
    assert isinstance(empty, WanTransformer3DModel)
    with bind(empty, Plan((operation(micro_wan),))):
        pass
    pipeline = replace(micro_wan, transformer=empty)
    with pytest.raises(ConfigError, match="weights are not loaded"):
        sample(pipeline, plan=Plan((operation(micro_wan),)))


def test_both_experts_of_two_are_steered(tiny_checkpoint, tiny_low_expert):
    pipeline = WanPipeline.load(tiny_checkpoint, dtype=torch.float32, device="cpu")
    pipeline = replace(pipeline, facts=replace(pipeline.facts, boundary=0.875), transformer_2=tiny_low_expert)
    size = {"num_frames": 5, "height": 16, "width": 32, "steps": 4, "guidance": 3.0, "shift": 3.0}
    num_blocks = len(pipeline.transformer.blocks)
    inject = Operation("context", "lerp", (1.0,) * num_blocks, PromptPayload(pipeline.encode(INJECTED)))
    assert torch.equal(sample(pipeline, plan=Plan((inject,)), **size), sample(pipeline, INJECTED, **size))
    assert torch.equal(sample(pipeline, **size), sample(pipeline, **size))
