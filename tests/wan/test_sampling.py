"""Sampling reaches what the velocity points to, from noise that belongs to a seed."""

import pytest
import torch
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.wan import facts
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise, guide, sample

SHAPE = (4, 3, 2, 2)


def settings(sampler="euler", steps=6, shift=3.0, guidance=(1.0, 1.0)) -> SamplingSettings:
    return SamplingSettings(steps=steps, shift=shift, guidance=guidance, sampler=sampler)


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_straight_flow_ends_at_its_target(sampler: str, steps: int):
    """The optimal velocity towards one clip x is (latents - x) / sigma, a straight line that any step size follows."""
    target = torch.linspace(-1, 1, 48).reshape(1, *SHAPE)
    scheduler = build_scheduler(settings(sampler, steps))
    sigmas = iter(scheduler.sigmas)

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        return (latents - target) / next(sigmas)

    reached = sample(velocity, draw_noise(SHAPE, [3]), scheduler)
    torch.testing.assert_close(reached, target, atol=1e-4, rtol=0)


def test_unipc_is_of_higher_order_than_euler_on_a_curved_flow():
    """For data N(0, 1/4) the velocity is linear in the latents and the exact map is a scaling by 1/2."""

    def velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        sigma = timestep / 1000
        variance = (1 - sigma) ** 2 / 4 + sigma**2
        return latents * (sigma - (1 - sigma) / 4) / variance

    noise = draw_noise(SHAPE, [0])
    errors = {
        sampler: (sample(velocity, noise, build_scheduler(settings(sampler, 12, 1.0))) - noise / 2).abs().max().item()
        for sampler in ("euler", "unipc")
    }
    assert errors["unipc"] < 0.5 * errors["euler"] < 0.2


@pytest.mark.parametrize("sampler", ["unipc", "euler"])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
def test_both_samplers_walk_the_shifted_even_steps(sampler: str, shift: float):
    even = torch.tensor([1.0, 0.75, 0.5, 0.25])
    expected = shift * even / (1 + (shift - 1) * even)
    scheduler = build_scheduler(settings(sampler, 4, shift))
    torch.testing.assert_close(scheduler.sigmas[:4], expected, atol=2e-3, rtol=0)
    assert scheduler.sigmas[4] == 0
    torch.testing.assert_close(scheduler.timesteps.float(), scheduler.sigmas[:4] * 1000, atol=1.0, rtol=0)


def test_the_unipc_steps_are_those_of_the_reference_configuration():
    reference = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    reference.set_timesteps(9)
    scheduler = build_scheduler(settings("unipc", 9, 5.0))
    assert torch.equal(scheduler.timesteps, reference.timesteps)
    assert torch.equal(scheduler.sigmas, reference.sigmas)


def test_noise_belongs_to_the_seed_and_not_to_the_batch():
    pair = draw_noise(SHAPE, [7, 8])
    assert torch.equal(draw_noise(SHAPE, [8, 7, 7])[1], pair[0])
    assert torch.equal(pair[1:], draw_noise(SHAPE, [8]))
    assert not torch.equal(pair[0], pair[1])
    assert abs(draw_noise((16, 8, 16, 16), [0]).std() - 1) < 0.02


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_out_of_range_is_refused(seed: int):
    with pytest.raises(ConfigError, match="seed"):
        draw_noise(SHAPE, [seed])


def test_guidance_extrapolates_from_the_unconditional_prediction():
    conditional, unconditional = torch.full((1, *SHAPE), 3.0), torch.full((1, *SHAPE), 1.0)
    assert torch.equal(guide(conditional, unconditional, 1.0), conditional)
    assert torch.equal(guide(conditional, unconditional, 4.0), torch.full((1, *SHAPE), 9.0))


def test_a_callback_sees_every_step_and_can_replace_the_latents():
    seen = []

    def callback(step: int, timestep: float, latents: Tensor) -> Tensor | None:
        seen.append((step, timestep))
        return torch.zeros_like(latents) if step == 2 else None

    def no_velocity(latents: Tensor, timestep: Tensor) -> Tensor:
        return torch.zeros_like(latents)

    latents = sample(no_velocity, draw_noise(SHAPE, [0]), build_scheduler(settings(steps=3)), callback)
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000.0
    assert torch.equal(latents, torch.zeros(1, *SHAPE))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sampler": "ddim"}, "unipc or euler"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1001}, "1 to 1000"),
        ({"shift": 0.0}, "shift"),
        ({"shift": float("nan")}, "shift"),
        ({"guidance": (3.0, -1.0)}, "guidance"),
        ({"guidance": (float("inf"), 1.0)}, "guidance"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        settings(**wrong)


def test_two_guidance_scales_are_refused_where_the_second_would_be_ignored():
    with pytest.raises(ConfigError, match=r"guidance=\(4.0, 3.0\) is for two experts"):
        SamplingSettings.for_model(facts.get("ti2v-5b"), guidance=(4.0, 3.0))


def test_settings_take_the_models_defaults_and_one_guidance_serves_both_experts():
    assert SamplingSettings.for_model(facts.get("t2v-a14b")) == SamplingSettings(40, 12.0, (4.0, 3.0))
    assert SamplingSettings.for_model(facts.get("t2v-a14b"), guidance=2.0).guidance == (2.0, 2.0)
    assert SamplingSettings.for_model(facts.get("micro"), steps=4) == SamplingSettings(4, 3.0, (3.0, 3.0))
