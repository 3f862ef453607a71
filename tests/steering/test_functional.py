"""What another prompt, or an edit, does to cross-attention and velocity, along the model's own trajectories."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.functional import Spread, functional_effect, seed_floor
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PromptPayload, Side
from latentloom.steering.projection import text_rows
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, guide

A, B = "a red circle moves left", "a large blue square moves up on white"
SIZE = ClipSize(5, 16, 32)
SETTINGS = SamplingSettings(steps=4, shift=3.0, guidance=(3.0, 3.0))
SMALL = {"seeds": [3, 5, 6], "size": SIZE, "settings": SETTINGS}
NUM_BLOCKS, DIM = 2, 24


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def effect(pipeline: WanPipeline):
    return functional_effect(pipeline, A, B, num_timesteps=3, **SMALL)


def num_hooks(pipeline: WanPipeline) -> int:
    modules = pipeline.transformer.modules()
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)


def swap_at(pipeline: WanPipeline, block: int, side: Side = "cond") -> Plan:
    strengths = tuple(float(number == block) for number in range(NUM_BLOCKS))
    return Plan((Operation("context", "replace", strengths, PromptPayload(pipeline.encode([B])), side),))


def test_identical_prompts_have_no_effect_at_all(pipeline):
    same = functional_effect(pipeline, A, A, num_timesteps=2, **SMALL)
    for spread in (same.attention, same.velocity, same.guided):
        assert (spread.mean.abs().max(), spread.low.abs().max(), spread.high.abs().max()) == (0, 0, 0)
    assert same.velocity_floor.mean.min() > 0


def test_the_points_are_the_models_own_timesteps_from_first_to_last(effect):
    scheduler = build_scheduler(SETTINGS)
    assert effect.timesteps == tuple(scheduler.timesteps[[0, 2, 3]].tolist())
    assert effect.sigmas == tuple(scheduler.sigmas[[0, 2, 3]].tolist())
    assert effect.attention.mean.shape == effect.padding_mass.mean.shape == (3, NUM_BLOCKS)
    assert effect.velocity.mean.shape == effect.guided_floor.mean.shape == (3,)


@torch.no_grad()
def test_the_figures_are_those_computed_by_hand_from_the_prompts_own_trajectory(pipeline, effect):
    text, other, blank = (pipeline.encode([prompt] * 3) for prompt in (A, B, ""))
    passed: dict[int, Tensor] = {}
    pipeline.sample(
        text,
        size=SIZE,
        settings=SETTINGS,
        seeds=SMALL["seeds"],
        callback=lambda step, timestep, latents: passed.update({step: latents.clone()}),
    )
    latents, time = passed[1], torch.tensor(effect.timesteps[1])  # what step 1 returns enters step 2
    asked: dict[int, tuple[Tensor, Tensor]] = {}
    hooks = [
        block.get_submodule("attn2").register_forward_hook(
            lambda module, args, output, n=number: asked.update({n: (args[0], output)})
        )
        for number, block in enumerate(pipeline.transformer.blocks)
    ]
    plain = pipeline.velocity(latents, time, text)
    for hook in hooks:
        hook.remove()
    changed, unconditional = pipeline.velocity(latents, time, other), pipeline.velocity(latents, time, blank)
    rows = text_rows(pipeline.transformer, other, folded=False).rows  # all 512 of them, where the model runs folded
    for number, (asking, answer) in asked.items():
        alternative = WanAttnProcessor()(pipeline.transformer.blocks[number].get_submodule("attn2"), asking, rows)
        by_hand = ((alternative - answer).flatten(1).norm(dim=1) / answer.flatten(1).norm(dim=1)).mean()
        assert effect.attention.mean[1, number].item() == pytest.approx(by_hand.item(), rel=1e-3)
    relative = (changed - plain).flatten(1).norm(dim=1) / plain.flatten(1).norm(dim=1)
    assert effect.velocity.mean[1].item() == pytest.approx(relative.mean().item(), rel=1e-4)
    guided, guided_changed = guide(plain, unconditional, 3.0), guide(changed, unconditional, 3.0)
    relative = (guided_changed - guided).flatten(1).norm(dim=1) / guided.flatten(1).norm(dim=1)
    assert effect.guided.mean[1].item() == pytest.approx(relative.mean().item(), rel=1e-4)
    floor = seed_floor(latents, guided, effect.sigmas[1])
    assert effect.guided_floor.mean[1].item() == pytest.approx(floor.mean().item(), rel=1e-4)


def test_a_context_swap_at_one_block_changes_what_that_blocks_attention_answers_and_no_other(pipeline):
    for block in range(NUM_BLOCKS):
        plan = swap_at(pipeline, block)
        swapped = functional_effect(pipeline, A, edit=lambda plan=plan: steer(pipeline, plan), num_timesteps=2, **SMALL)
        assert swapped.attention.mean[:, block].min() > 0.01
        assert swapped.attention.mean[:, 1 - block].max() < 1e-5
        assert swapped.velocity.low.min() > 0


def test_swapping_in_all_blocks_has_the_other_prompts_effect_on_the_velocity(pipeline, effect):
    plan = Plan((Operation("context", "replace", (1.0, 1.0), PromptPayload(pipeline.encode([B]))),))
    swapped = functional_effect(pipeline, A, edit=lambda: steer(pipeline, plan), num_timesteps=3, **SMALL)
    assert torch.allclose(swapped.velocity.mean, effect.velocity.mean, rtol=1e-5)
    assert torch.allclose(swapped.guided.mean, effect.guided.mean, rtol=1e-5)
    assert torch.equal(swapped.guided_floor.mean, effect.guided_floor.mean)
    # what block 0 asks with is the same in both runs
    assert torch.allclose(swapped.attention.mean[:, 0], effect.attention.mean[:, 0], rtol=1e-4)


def test_an_edit_of_what_attention_answers_is_seen(pipeline):
    direction = torch.ones(1, DIM)
    plan = Plan((Operation("attention_output", "add", (0.0, 5.0), DirectionPayload(direction)),))
    added = functional_effect(pipeline, A, edit=lambda: steer(pipeline, plan), num_timesteps=2, **SMALL)
    assert added.attention.mean[:, 0].max() < 1e-5
    assert added.attention.mean[:, 1].min() > 0.1


def test_an_edit_of_the_negative_side_shows_after_guidance_alone(pipeline):
    plan = swap_at(pipeline, 0, side="uncond")
    swapped = functional_effect(pipeline, A, edit=lambda: steer(pipeline, plan), num_timesteps=2, **SMALL)
    assert swapped.velocity.mean.abs().max() < 1e-5
    assert swapped.guided.mean.min() > 1e-3


def test_without_guidance_both_velocities_are_one(pipeline):
    unguided = replace(SETTINGS, guidance=(1.0, 1.0))
    plain = functional_effect(pipeline, A, B, num_timesteps=1, **{**SMALL, "settings": unguided})
    assert torch.equal(plain.velocity.mean, plain.guided.mean)
    assert torch.equal(plain.velocity_floor.mean, plain.guided_floor.mean)


def test_most_attention_of_a_short_prompt_lands_on_padding_and_none_where_there_is_none(pipeline, effect):
    assert effect.padding_mass.mean.min() > 0.9
    full = pipeline.encode(["red " * 600])
    assert full.lengths.tolist() == [512]
    filled = functional_effect(pipeline, full, B, num_timesteps=1, **SMALL)
    assert filled.padding_mass.mean.max() == 0


def test_seeds_computed_apart_give_the_same_figures(pipeline, effect, monkeypatch):
    monkeypatch.setattr("latentloom.wan.pipeline.MAX_CLIPS_PER_BATCH", 2)
    apart = functional_effect(pipeline, A, B, num_timesteps=3, **SMALL)
    for name in ("attention", "padding_mass", "velocity", "guided", "guided_floor"):
        assert torch.allclose(getattr(apart, name).mean, getattr(effect, name).mean, rtol=1e-4), name


def test_the_model_is_left_as_it_was_also_after_an_exception(pipeline, monkeypatch):
    @contextmanager
    def failing() -> Iterator[None]:
        with steer(pipeline, swap_at(pipeline, 0)):
            monkeypatch.setattr(pipeline, "predict", fail)
            yield

    def fail(*arguments: object) -> None:
        raise KeyError("stop")

    before = num_hooks(pipeline)
    with pytest.raises(KeyError):
        functional_effect(pipeline, A, edit=failing, num_timesteps=1, **SMALL)
    monkeypatch.undo()
    assert num_hooks(pipeline) == before
    assert pipeline.around_call is None


def test_a_compiled_block_is_measured_too(tiny_checkpoint):
    compiled = WanPipeline.load(tiny_checkpoint, device="cpu")
    one_step = {**SMALL, "settings": replace(SETTINGS, steps=1, guidance=(1.0, 1.0)), "num_timesteps": 1}
    plain = functional_effect(compiled, A, B, **one_step)
    compiled.transformer.blocks[1].compile(backend="eager")
    measured = functional_effect(compiled, A, B, **one_step)
    assert torch.allclose(measured.attention.mean, plain.attention.mean, rtol=1e-5)
    assert torch.allclose(measured.velocity.mean, plain.velocity.mean, rtol=1e-5)


def test_the_floor_is_how_far_other_seeds_lie_in_predicted_clips():
    noise = torch.randn(3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    clean = torch.zeros(3, 4, 1, 2, 2)
    # one clip for all seeds: their noise differs, what the model answers does not
    latents, velocities = 0.4 * clean + 0.6 * noise, noise - clean
    assert seed_floor(latents, velocities, 0.6).max() < 1e-6
    clean[1, 0] = 3.0  # one seed leads elsewhere, 6 away from the others' clips
    latents, velocities = 0.4 * clean + 0.6 * noise, noise - clean
    lengths = velocities.flatten(1).norm(dim=1)
    expected = torch.tensor([3.0, 6.0, 3.0]) / (0.6 * lengths)
    assert torch.allclose(seed_floor(latents, velocities, 0.6), expected, rtol=1e-5)


def test_the_interval_is_students():
    values = torch.tensor([[1.0], [2.0], [3.0], [6.0]])
    spread = Spread.over_seeds(values)
    reach = 3.182446 * values.std().item() / 2
    assert (spread.mean.item(), spread.low.item()) == (3.0, pytest.approx(3.0 - reach, rel=1e-5))
    assert spread.high.item() == pytest.approx(3.0 + reach, rel=1e-5)


def test_json_has_every_figure(effect):
    told = json.loads(json.dumps(effect.to_json()))
    assert told["seeds"] == SMALL["seeds"]
    assert told["timesteps"] == list(effect.timesteps)
    assert len(told["attention"]["mean"]) == 3
    assert told["velocity"]["low"][0] < told["velocity"]["mean"][0] < told["velocity"]["high"][0]


def test_what_cannot_be_measured_is_refused(pipeline):
    for arguments, message in (
        ({}, "either a second prompt or an edit"),
        ({"second": B, "edit": lambda: steer(pipeline, swap_at(pipeline, 0))}, "either a second prompt or an edit"),
        ({"second": B, "seeds": [1]}, "give at least two different ones"),
        ({"second": B, "seeds": [1, 1]}, "give at least two different ones"),
        ({"second": B, "num_timesteps": 5}, "5 points of a schedule of 4 steps; give 1 to 4"),
        ({"second": pipeline.encode([A, B])}, "2 prompts were given as one"),
    ):
        with pytest.raises(ConfigError, match=message):
            functional_effect(pipeline, A, **{**SMALL, **arguments})


def test_bfloat16_reads_512_rows_and_agrees(tiny_checkpoint, effect):
    half = WanPipeline.load(tiny_checkpoint, dtype=torch.bfloat16, device="cpu")
    measured = functional_effect(half, A, B, num_timesteps=3, **SMALL)
    assert torch.allclose(measured.padding_mass.mean, effect.padding_mass.mean, atol=0.01)
    assert torch.allclose(measured.velocity.mean, effect.velocity.mean, rtol=0.1)
    assert functional_effect(half, A, A, num_timesteps=1, **SMALL).attention.mean.max() == 0
