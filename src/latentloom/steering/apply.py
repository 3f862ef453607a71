"""A plan carried out while clips are sampled, beside the same clips without it and with the injected prompt instead."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import ActivationsPayload, Plan, PromptPayload, RowsPayload
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.model_call import ModelCall
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, guide


@dataclass(frozen=True, eq=False)
class Applied:
    """B clips, each from the same noise in every run.

    Args:
        plain: without the plan.
        steered: with it.
        swapped: without it, the injected prompt in the place of the clip's own; None where the plan injects no prompt,
            or different ones.
        velocity: per clip and step, ||v' - v|| / ||v|| of the velocity predicted for the prompt, where v' is with the
            plan and both are asked at the latents that the plain run passes.
        guided: the same after guidance.
    """

    plain: VideoLatents
    steered: VideoLatents
    swapped: VideoLatents | None
    velocity: Float[Tensor, "B T"]
    guided: Float[Tensor, "B T"]

    @property
    def runs(self) -> dict[str, VideoLatents]:
        """The latents by the name of the run."""
        runs = {"plain": self.plain, "steered": self.steered, "swapped": self.swapped}
        return {name: latents for name, latents in runs.items() if latents is not None}

    @property
    def equals_plain(self) -> list[bool]:
        """Per clip, whether the plan changed no bit."""
        return _equal(self.steered, self.plain)

    @property
    def equals_swapped(self) -> list[bool] | None:
        """Per clip, whether the plan gives, bit for bit, what the injected prompt gives."""
        return None if self.swapped is None else _equal(self.steered, self.swapped)


def apply_plan(
    pipeline: WanPipeline,
    text: TextEmbeddings,
    plan: Plan,
    negative: str | TextEmbeddings = "",
    *,
    seeds: list[int],
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
    batch_size: int | None = None,
) -> Applied:
    """Sample clips plain, steered and, if the plan injects a prompt, swapped; measure the steering on the way.

    Args:
        pipeline: the model.
        text: one prompt per clip, B.
        plan: what to do.
        negative, seeds, size, settings, batch_size: as in `WanPipeline.sample`.

    Raises:
        ConfigError: a plan that does not fit the model or the number of clips.
    """
    size = size if size is not None else ClipSize.for_model(pipeline.facts)
    settings = settings if settings is not None else SamplingSettings.for_model(pipeline.facts)
    check_plan(pipeline, plan, len(text))
    injected = injected_text(plan)
    num_calls = settings.steps * len(pipeline.batches(len(text), size, batch_size)) * (2 if injected is None else 3)
    bar = track(num_calls, "sampling")
    next(bar)  # the bar counts a step when the next one is asked for

    def count(step: int, timestep: float, latents: Tensor) -> None:
        next(bar, None)

    def run(prompts: TextEmbeddings) -> VideoLatents:
        return pipeline.sample(
            prompts, negative, size=size, settings=settings, seeds=seeds, callback=count, batch_size=batch_size
        ).to("cpu")

    with watch_change(pipeline, plan, settings) as change:
        plain = run(text)
    with steer(pipeline, plan):
        steered = run(text)
    swapped = None
    if injected is not None:
        swapped = run(injected if len(injected) == len(text) else injected[[0] * len(text)])
    velocity, guided = change.by_clip(len(text))
    return Applied(plain, steered, swapped, velocity, guided)


def check_plan(pipeline: WanPipeline, plan: Plan, num_clips: int) -> None:
    """Return if the plan fits the model and as many clips: what would otherwise fail in the midst of sampling.

    Raises:
        ConfigError: it does not.
    """
    config = pipeline.transformer.config
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    plan.check(len(pipeline.transformer.blocks), dim, config["text_dim"])
    for operation in plan.operations:
        payload, count, kind = operation.payload, 1, "prompts"
        if isinstance(payload, PromptPayload | RowsPayload):
            count = len(payload.text if isinstance(payload, PromptPayload) else payload.rows)
        if isinstance(payload, ActivationsPayload):
            count, kind = len(next(iter(payload.activations.values.values()))), "clips' activations"
        if count not in (1, num_clips):
            raise ConfigError(f"the plan injects {count} {kind} and there are {num_clips} clips; give one, or one each")


def injected_text(plan: Plan) -> TextEmbeddings | None:
    """The prompts that the plan injects for the conditional side; None where it has none, or different ones."""
    texts = [
        operation.payload.text
        for operation in plan.operations
        if isinstance(operation.payload, PromptPayload) and operation.side != "uncond"
    ]
    alike = all(
        torch.equal(other.lengths, texts[0].lengths) and torch.equal(other.tokens, texts[0].tokens)
        for other in texts[1:]
    )
    return texts[0] if texts and alike else None


@contextmanager
def watch_change(pipeline: WanPipeline, plan: Plan, settings: SamplingSettings) -> Iterator["VelocityChange"]:
    """Within this context the pipeline samples as it would, and every step is asked about a second time, steered.

    Args:
        pipeline: `around_call` is as before on leaving.
        plan: acts on the second answers only.
        settings: of the sampling; guidance is applied to both answers.

    Raises:
        ConfigError: the plan does not fit the model.
    """
    before, change = pipeline.around_call, VelocityChange(pipeline, settings)
    with steer(pipeline, plan):
        steered = pipeline.around_call
        assert steered is not None

        @contextmanager
        def around(call: ModelCall) -> Iterator[None]:
            with before(call) if before else nullcontext(), _answers_of(call.model) as answers:
                yield
            # a compiled model does not look at hooks that come after its compilation
            plain = answers[0].float() if answers else _ask(pipeline, call)
            changed = plain
            if _acts(plan, call):
                with steered(call):
                    changed = _ask(pipeline, call)
            change.add(call, plain, changed)

        pipeline.around_call = around
        try:
            yield change
        finally:
            pipeline.around_call = steered


class VelocityChange:
    """Collects, call by call, how far the steered velocity is from the plain one.

    Args:
        pipeline: whose calls they are.
        settings: of the sampling.
    """

    def __init__(self, pipeline: WanPipeline, settings: SamplingSettings) -> None:
        self._pipeline, self._settings = pipeline, settings
        self._of_step: dict[bool, tuple[Tensor, Tensor]] = {}
        self._found: dict[int, list[tuple[float, float]]] = {}

    def add(self, call: ModelCall, plain: Float[Tensor, "B C T H W"], changed: Float[Tensor, "B C T H W"]) -> None:
        """Take in the two answers to one call; with guidance a step has two calls, or one of both sides."""
        for side in (True, False):
            rows = torch.tensor([row for row, given in enumerate(call.conditional) if given == side], dtype=torch.long)
            if len(rows):
                rows = rows.to(plain.device)
                self._of_step[side] = plain[rows], changed[rows]
        _, scale = self._pipeline.expert(float(call.timestep), self._settings)
        is_guided = self._settings.is_guided and scale > 1
        if True not in self._of_step or (is_guided and False not in self._of_step):
            return
        conditional = self._of_step[True]
        guided = conditional
        if is_guided:
            guided = [
                guide(given, blank, scale) for given, blank in zip(conditional, self._of_step[False], strict=True)
            ]
        changes = zip(_relative(*conditional), _relative(*guided), strict=True)
        for clip, figures in zip(dict.fromkeys(call.clips), changes, strict=True):
            self._found.setdefault(clip, []).append(figures)
        self._of_step.clear()

    def by_clip(self, num_clips: int) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        """The changes of all clips and steps, as predicted and after guidance."""
        figures = torch.tensor([self._found[clip] for clip in range(num_clips)])
        return figures[..., 0], figures[..., 1]


def _acts(plan: Plan, call: ModelCall) -> bool:
    return any(
        operation.blocks and operation.acts_at(call.progress) and any(map(operation.acts_on, call.conditional))
        for operation in plan.operations
    )


@contextmanager
def _answers_of(model: WanTransformer3DModel) -> Iterator[list[Tensor]]:
    """What the model returns within this context."""
    answers: list[Tensor] = []
    handle = model.register_forward_hook(lambda module, inputs, output: answers.append(output[0]))
    try:
        yield answers
    finally:
        handle.remove()


def _ask(pipeline: WanPipeline, call: ModelCall) -> Float[Tensor, "B C T H W"]:
    return pipeline.predict(call.model, call.latents, call.timestep, call.text)


def _relative(plain: Float[Tensor, "B C T H W"], changed: Float[Tensor, "B C T H W"]) -> list[float]:
    apart, length = (changed - plain).flatten(1).norm(dim=1), plain.flatten(1).norm(dim=1)
    return (apart / length.clamp_min(torch.finfo(torch.float32).tiny)).tolist()


def _equal(first: VideoLatents, second: VideoLatents) -> list[bool]:
    return [torch.equal(one, other) for one, other in zip(first.values, second.values, strict=True)]
