"""Flow-matching sampling: from noise to latents along a model's velocity.

A latent at noise level sigma is `(1 - sigma) x + sigma noise`; the model predicts the velocity `noise - x`. Everything
here is a pure function of tensors; the pipeline supplies the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.wan.facts import ModelFacts

SAMPLERS = ("unipc", "euler")
NUM_TRAIN_TIMESTEPS = 1000
"""A timestep is sigma times this, for every Wan model."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(latents [B,C,T,H,W], timestep scalar from 1000 down) -> velocity, same shape."""

StepCallback = Callable[[int, float, Tensor], Tensor | None]
"""(step index, timestep, latents after the step) -> latents to go on with, or None to keep them."""


@runtime_checkable
class Scheduler(Protocol):
    """The face that diffusers' schedulers share, once their steps are set."""

    timesteps: Tensor
    sigmas: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, *, return_dict: bool) -> tuple: ...


@dataclass(frozen=True)
class SamplingSettings:
    """How to walk from noise to latents.

    Args:
        steps: model evaluations, or pairs of them with guidance; 1 to 1000.
        shift: see `build_scheduler`.
        guidance: classifier-free guidance scales at high noise and at low noise; up to 1 means none.
        sampler: `unipc` or `euler`.
        batched_guidance: evaluate with and without the prompt in one call, which can pay on an accelerator that a small
            model leaves idle. Two calls take half the memory and on a CPU are no slower.

    Raises:
        ConfigError: a number is out of range; the message says which and what is allowed.
    """

    steps: int
    shift: float
    guidance: tuple[float, float]
    sampler: str = "unipc"
    batched_guidance: bool = False

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler={self.sampler!r} is unknown; use {' or '.join(SAMPLERS)}")
        if not 1 <= self.steps <= NUM_TRAIN_TIMESTEPS:
            raise ConfigError(f"steps={self.steps} is out of range; use 1 to {NUM_TRAIN_TIMESTEPS}")
        if not 0 < self.shift < math.inf:
            raise ConfigError(f"shift={self.shift} is out of range; use a number above 0, such as 3 or 5")
        if not all(0 <= scale < math.inf for scale in self.guidance):
            raise ConfigError(f"guidance={self.guidance} is out of range; use numbers from 0 up, such as 5 (1 is none)")

    @classmethod
    def for_model(
        cls,
        facts: ModelFacts,
        steps: int | None = None,
        guidance: float | tuple[float, float] | None = None,
        shift: float | None = None,
        sampler: str = "unipc",
        batched_guidance: bool = False,
    ) -> SamplingSettings:
        """The settings asked for, with the model's default where they are None; one guidance serves both experts.

        Raises:
            ConfigError: a number is out of range, or two guidance scales for a model that is not two experts.
        """
        if isinstance(guidance, tuple) and facts.boundary is None:
            raise ConfigError(f"guidance={guidance} is for two experts, and {facts.title} is one model; give one scale")
        scale = facts.guidance if guidance is None else guidance
        return cls(
            steps=facts.steps if steps is None else steps,
            shift=facts.shift if shift is None else shift,
            guidance=scale if isinstance(scale, tuple) else (scale, scale),
            sampler=sampler,
            batched_guidance=batched_guidance,
        )

    @property
    def is_guided(self) -> bool:
        """Whether any step needs the unconditional prediction."""
        return max(self.guidance) > 1


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Float[Tensor, "B C T H W"],
    scheduler: Scheduler,
    callback: StepCallback | None = None,
) -> Float[Tensor, "B C T H W"]:
    """Integrate a velocity from noise to clean latents, in float32.

    Args:
        velocity: the guided model.
        noise: standard normal, one clip per row.
        scheduler: from `build_scheduler`; fresh, since a multistep scheduler remembers its steps.
        callback: called after every step; what it returns replaces the latents.
    """
    latents = noise.float()
    for step, timestep in enumerate(scheduler.timesteps):
        prediction = velocity(latents, timestep).float()
        latents = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
        if callback is not None:
            replaced = callback(step, float(timestep), latents)
            latents = latents if replaced is None else replaced
    return latents


def build_scheduler(settings: SamplingSettings, device: torch.device | str = "cpu") -> Scheduler:
    """Build a scheduler with its steps set; both samplers walk evenly spaced sigmas after the shift.

    Args:
        settings: `unipc` is of order 2 and Wan's default. A shift above 1 spends more steps on high noise; sigma
            becomes `shift sigma / (1 + (shift - 1) sigma)`.
        device: where the latents are.

    Source: UniPC (Zhao et al. 2023) and flow matching (Lipman et al. 2023); the shift is Esser et al. 2024, eq. 23.
    """
    if settings.sampler == "unipc":
        unipc = UniPCMultistepScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=settings.shift,
        )
        unipc.set_timesteps(settings.steps, device=device)
        unipc.set_begin_index(0)
        return cast(Scheduler, unipc)
    euler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=settings.shift)
    # Without sigmas of ours the scheduler shifts the last one twice and spends its last step on next to no noise.
    euler.set_timesteps(sigmas=np.linspace(1, 0, settings.steps + 1)[:-1].tolist(), device=device)
    euler.set_begin_index(0)
    return cast(Scheduler, euler)


def draw_noise(
    shape: tuple[int, int, int, int], seeds: list[int], device: torch.device | None = None
) -> Float[Tensor, "B C T H W"]:
    """Draw standard normal latents, one generator per clip, so that a clip depends on its own seed only.

    Args:
        shape: channels, frames, rows and columns of one clip's latents.
        seeds: one per clip. The numbers come from the CPU's generator and are the same for every device.
        device: where the noise goes.

    Raises:
        ConfigError: a seed is negative or above 2^63 - 1.
    """
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed} is out of range; use a whole number from 0 to 2^63 - 1")
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(device)


def guide(
    conditional: Float[Tensor, "B C T H W"], unconditional: Float[Tensor, "B C T H W"], guidance: float
) -> Float[Tensor, "B C T H W"]:
    """Move a prediction away from the unconditional one; guidance 1 returns the conditional one.

    Source: Ho and Salimans 2022, classifier-free guidance.
    """
    return unconditional + guidance * (conditional - unconditional)
