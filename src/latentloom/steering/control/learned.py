"""Control vectors that are learned: optimised until a prompt's velocity becomes that of a target prompt."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import DirectionPayload, Operation, Plan
from latentloom.steering.projection import project
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.model_call import ModelCall
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings

NUM_STEPS = 300
BATCH_SIZE = 8


@dataclass(frozen=True)
class LearningHistory:
    """How the learning went.

    Args:
        losses: of each step, on the clips and the timestep that it drew.
        before, after: mean loss over all clips and timesteps, without and with the vector.
    """

    losses: tuple[float, ...]
    before: float
    after: float


class LearnedControl(NamedTuple):
    """A control vector at the context, and how it came about."""

    control: ControlVector
    history: LearningHistory


def learn_control(
    pipeline: WanPipeline,
    texts: TextEmbeddings,
    target_texts: TextEmbeddings,
    *,
    seeds: Sequence[int],
    generator: torch.Generator,
    steps: int = NUM_STEPS,
    lr: float = 0.05,
    batch_size: int = BATCH_SIZE,
    blocks: Sequence[int] | None = None,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> LearnedControl:
    """One direction per block which, added to the true text rows of any of the texts, makes the model hear its target.

    The loss is |v(x, text + direction) - v(x, target)|^2 / |v(x, target)|^2 of the conditional velocity v, at latents x
    that sampling passes through: those of the texts and those of their targets, from the same seeds. All of them, and
    the targets' velocities, are kept on the CPU.

    Args:
        pipeline: its transformers stay as they are, and so do their parameters' flags.
        texts, target_texts: prompt i is to become target i.
        seeds: of the clips, one per text.
        generator: draws timesteps and clips; the same state gives the same vector.
        steps: of Adam.
        lr: of Adam, in units of a text row's channel, so that it does not depend on the model.
        batch_size: clips per step.
        blocks: those that get a direction; None is all of them.
        size, settings: of the clips; the model's defaults where None.
        provenance: more about where the texts come from, JSON values.

    Raises:
        ConfigError: not as many targets or seeds as texts, a setting out of range, or a loss that became NaN.
    """
    _refuse_settings(texts, target_texts, len(seeds), steps, lr, batch_size)
    num_blocks = len(pipeline.transformer.blocks)
    chosen = _chosen(blocks, num_blocks)
    texts, target_texts = pipeline.encode(texts), pipeline.encode(target_texts)
    states = _states(pipeline, texts, target_texts, list(seeds), size, settings)
    before = _mean_loss(pipeline, states, texts, "error before")
    directions, losses, after = _optimise(pipeline, states, texts, chosen, generator, steps, lr, batch_size)
    about = {"method": "learned", "num_pairs": len(texts), "seeds": list(seeds), "steps": steps, "lr": lr}
    learned = {"batch_size": batch_size, "blocks": list(chosen), "loss_before": before, "loss_after": after}
    record = {**(provenance or {}), **about, **learned}
    control = ControlVector("context", directions[None], pipeline.facts.key, provenance=record)
    return LearnedControl(control, LearningHistory(tuple(losses), before, after))


def _optimise(
    pipeline: WanPipeline,
    states: Sequence["_State"],
    texts: TextEmbeddings,
    blocks: Sequence[int],
    generator: torch.Generator,
    steps: int,
    lr: float,
    batch_size: int,
) -> tuple[Float[Tensor, "N D"], list[float], float]:
    """The directions, the loss of each step, and the mean loss with them."""
    rows, num_blocks = project(pipeline.transformer, texts).tokens.float(), len(pipeline.transformer.blocks)
    directions = torch.zeros(num_blocks, rows.shape[1], device=pipeline.device, requires_grad=True)
    strengths = tuple(float(block in blocks) for block in range(num_blocks))
    plan = Plan((Operation("context", "add", strengths, DirectionPayload(directions)),))
    optimizer = torch.optim.Adam([directions], lr=lr * float(rows.square().mean().sqrt()))
    losses = []
    with _frozen(pipeline), steer(pipeline, plan), torch.enable_grad():
        for _ in track(steps, "learning"):
            state = states[int(torch.randint(len(states), (), generator=generator))]
            drawn = torch.randperm(len(state.clips), generator=generator)[:batch_size]
            loss = _loss(pipeline, state.part(drawn), texts)
            losses.append(_finite(float(loss.detach()), len(losses), lr))
            (directions.grad,) = torch.autograd.grad(loss, [directions])
            optimizer.step()
        after = _finite(_mean_loss(pipeline, states, texts, "error after"), steps, lr)
    return directions.detach().cpu(), losses, after


def _finite(loss: float, num_steps: int, lr: float) -> float:
    if not math.isfinite(loss):
        raise ConfigError(f"the loss is {loss} after {num_steps} steps of lr={lr}; lower lr")
    return loss


class _State(NamedTuple):
    """Latents at one timestep of some clips' sampling, and the velocities that their targets have there; on the CPU."""

    timestep: Num[Tensor, ""]
    clips: Int[Tensor, "B"]
    latents: Float[Tensor, "B C T H W"]
    velocities: Float[Tensor, "B C T H W"]

    def part(self, rows: Int[Tensor, "R"]) -> "_State":
        return _State(self.timestep, self.clips[rows], self.latents[rows], self.velocities[rows])


@torch.no_grad()
def _states(
    pipeline: WanPipeline,
    texts: TextEmbeddings,
    target_texts: TextEmbeddings,
    seeds: list[int],
    size: ClipSize | None,
    settings: SamplingSettings | None,
) -> list[_State]:
    """What sampling passes through, with the texts and with their targets."""
    calls: list[ModelCall] = []
    with _recorded(pipeline, calls):
        for prompts in (texts, target_texts):
            pipeline.sample(prompts, size=size, settings=settings, seeds=seeds)
    states = []
    for call in track(calls, "targets"):
        rows = torch.tensor(call.conditional)
        clips, latents = torch.tensor(call.clips)[rows], call.latents[rows.to(call.latents.device)]
        velocities = pipeline.velocity(latents, call.timestep, target_texts[clips])
        states.append(_State(call.timestep, clips, latents.cpu(), velocities.cpu()))
    return states


@contextmanager
def _recorded(pipeline: WanPipeline, calls: list[ModelCall]) -> Iterator[None]:
    """Within this context, calls with the prompt are appended to `calls`."""
    before = pipeline.around_call

    @contextmanager
    def around(call: ModelCall) -> Iterator[None]:
        if any(call.conditional):
            calls.append(replace(call, latents=call.latents.cpu()))
        with before(call) if before else nullcontext():
            yield

    pipeline.around_call = around
    try:
        yield
    finally:
        pipeline.around_call = before


def _loss(pipeline: WanPipeline, state: _State, texts: TextEmbeddings) -> Float[Tensor, ""]:
    """The mean over clips of the velocity's squared error, relative to the target's squared length."""
    target = state.velocities.to(pipeline.device).flatten(1)
    found = pipeline.velocity(state.latents.to(pipeline.device), state.timestep, texts[state.clips]).flatten(1)
    return ((found - target).square().sum(dim=1) / target.square().sum(dim=1)).mean()


@torch.no_grad()
def _mean_loss(pipeline: WanPipeline, states: Sequence[_State], texts: TextEmbeddings, description: str) -> float:
    total = sum(float(_loss(pipeline, state, texts)) * len(state.clips) for state in track(states, description))
    return total / sum(len(state.clips) for state in states)


@contextmanager
def _frozen(pipeline: WanPipeline) -> Iterator[None]:
    """Within this context no weight of the transformers takes a gradient; their flags come back."""
    experts = [model for model in (pipeline.transformer, pipeline.transformer_2) if model is not None]
    trained = [weight for model in experts for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in trained:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _refuse_settings(
    texts: TextEmbeddings, target_texts: TextEmbeddings, num_seeds: int, steps: int, lr: float, batch_size: int
) -> None:
    if not len(texts) == len(target_texts) == num_seeds:
        raise ConfigError(
            f"{len(texts)} texts, {len(target_texts)} targets and {num_seeds} seeds; give one target and one seed each"
        )
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name}={value} is out of range; use 1 or more")
    if not 0 < lr < math.inf:
        raise ConfigError(f"lr={lr} is out of range; use a number above 0, such as 0.05")


def _chosen(blocks: Sequence[int] | None, num_blocks: int) -> tuple[int, ...]:
    chosen = tuple(range(num_blocks)) if blocks is None else tuple(sorted(set(blocks)))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < num_blocks:
        raise ConfigError(f"blocks={list(chosen)} of a model of {num_blocks}; give some of 0 to {num_blocks - 1}")
    return chosen
