"""What another prompt, or an edit, does to the model's answers: in each block's cross-attention, and in its velocity.

Embeddings that differ need not matter, and embeddings that hardly differ can. So the model is asked, at points of the
schedule and at latents that it passes itself when it samples the first prompt:

- per block, ||CA(x, A) - CA(x, B)|| / ||CA(x, A)||, where CA is the block's cross-attention and x what it asks with;
- of the velocity, ||v(A) - v(B)|| / ||v(A)||, as predicted and after guidance.

The floor of the second is what a change of the seed does under one prompt. Velocities at two seeds' latents differ
above all by the noise in them, which is given and no answer; so the predicted clean clips x - sigma v are compared, and
their distance is divided by sigma ||v||. At equal latents this is the formula above, and both are in one unit: how far
the predicted clip moves. An effect below the floor lies within what one prompt's clips vary anyway. Late in the
schedule the latents have all but decided the clip, so the floor stands high and no prompt reaches it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from jaxtyping import Float
from scipy.special import stdtrit
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.steering.projection import attention_mass, text_rows
from latentloom.steering.text_rows import TextRows
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.model_call import ModelCall
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise, guide

Edit = Callable[[], AbstractContextManager[object]]
"""Opens a context within which the pipeline's calls are edited, such as `lambda: steer(pipeline, plan)`."""

NUM_TIMESTEPS = 5
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Spread:
    """A figure over seeds: its mean and the ends of the mean's 95 % interval (Student's t, seeds as independent)."""

    mean: Float[Tensor, "..."]
    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]

    @classmethod
    def over_seeds(cls, values: Float[Tensor, "S ..."]) -> "Spread":
        """The spread of at least two seeds' values, in the first dimension."""
        values = values.double()
        mean = values.mean(dim=0)
        reach = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * values.std(dim=0) / len(values) ** 0.5
        return cls(mean.float(), (mean - reach).float(), (mean + reach).float())

    def to_json(self) -> dict[str, Any]:
        """Mean and both ends, as nested lists."""
        return {item.name: getattr(self, item.name).tolist() for item in fields(self)}


@dataclass(frozen=True, eq=False)
class FunctionalEffect:
    """What a change of the text does to the model's answers at T points of the schedule and in N blocks.

    Args:
        timesteps: the points, from noise down.
        sigmas: their noise levels.
        seeds: whose trajectories were followed.
        attention: [T, N], relative change of what cross-attention answers.
        padding_mass: [T, N], the share of the attention that lands on padding under the first prompt.
        velocity, guided: [T], relative change of the velocity, as predicted and after guidance.
        velocity_floor, guided_floor: [T], the same for a change of the seed alone; see the module's text.
    """

    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    seeds: tuple[int, ...]
    attention: Spread
    padding_mass: Spread
    velocity: Spread
    guided: Spread
    velocity_floor: Spread
    guided_floor: Spread

    def to_json(self) -> dict[str, Any]:
        """All figures with their intervals, as nested lists."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value.to_json() if isinstance(value, Spread) else list(value) for name, value in values.items()}


@torch.no_grad()
def functional_effect(
    pipeline: WanPipeline,
    first: str | TextEmbeddings,
    second: str | TextEmbeddings | None = None,
    edit: Edit | None = None,
    *,
    seeds: Sequence[int],
    num_timesteps: int = NUM_TIMESTEPS,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
    negative: str | TextEmbeddings = "",
) -> FunctionalEffect:
    """What the model answers to another prompt, or under an edit, beside what it answers to the first prompt.

    All compared answers are to the same latents: those that sampling the first prompt passes, without the edit. With
    `second`, x is what the block asks with when the model runs on the first prompt. With `edit`, the model runs edited,
    and each block's answer, edit included, is compared with what it would say to the unedited prompt; edits of hidden
    states change x for both, so they show in the velocity alone.

    Args:
        pipeline: a text-to-video model.
        first: the prompt, A.
        second: the other one, B, or
        edit: what acts around the model's calls.
        seeds: at least two; every figure comes as mean and interval over them.
        num_timesteps: points of the schedule, evenly spread over its steps, the first and the last included.
        size, settings, negative: as in `WanPipeline.sample`; the model's own where None.

    Raises:
        ConfigError: fewer than two seeds, points out of range, or not exactly one of `second` and `edit`.
    """
    if (second is None) == (edit is None):
        raise ConfigError("the effect of what? give either a second prompt or an edit")
    if len(set(seeds)) < 2:
        raise ConfigError(f"seeds {list(seeds)}: the floor compares seeds; give at least two different ones")
    size = size or ClipSize.for_model(pipeline.facts)
    settings = settings or SamplingSettings.for_model(pipeline.facts)
    text, blank = _one_prompt(pipeline, first), _one_prompt(pipeline, negative)
    other = text if second is None else _one_prompt(pipeline, second)
    steps = _spread_out(num_timesteps, settings.steps)
    passed = _trajectory(pipeline, text, blank, list(seeds), steps, size, settings)
    scheduler = build_scheduler(settings)
    timesteps, sigmas = ([float(values[step]) for step in steps] for values in (scheduler.timesteps, scheduler.sigmas))

    found: list[dict[str, Tensor]] = []
    for step, timestep, sigma in track(list(zip(steps, timesteps, sigmas, strict=True)), "measuring"):
        chunks = [
            _Point(pipeline, passed[step][rows], timestep, step / settings.steps, settings, rows)
            for rows in pipeline.batches(len(seeds), size)
        ]
        answers = [chunk.answers(text, other, blank, edit) for chunk in chunks]
        joined = {name: torch.cat([chunk[name] for chunk in answers]) for name in answers[0]}
        for kind in ("velocity", "guided"):
            joined[f"{kind}_floor"] = seed_floor(passed[step], joined.pop(f"{kind}_itself"), sigma)
        found.append(joined)
    spreads = {name: Spread.over_seeds(torch.stack([each[name] for each in found], dim=1)) for name in found[0]}
    return FunctionalEffect(tuple(timesteps), tuple(sigmas), tuple(seeds), **spreads)


def seed_floor(
    latents: Float[Tensor, "S C T H W"], velocities: Float[Tensor, "S C T H W"], sigma: float
) -> Float[Tensor, "S"]:
    """Per seed, how far the other seeds' predicted clean clips lie from its own, over sigma ||v||; the mean over them.

    Args:
        latents: what the seeds have come to under one prompt, at least two.
        velocities: what the model answers to each.
        sigma: noise level, above 0.
    """
    clean = (latents.float() - sigma * velocities.float()).flatten(1)
    apart = torch.stack([(clean - one).norm(dim=1) for one in clean])
    lengths = sigma * velocities.float().flatten(1).norm(dim=1)
    return _ratio(apart.sum(dim=1) / (len(clean) - 1), lengths)


@dataclass(frozen=True, eq=False)
class _Point:
    """Some seeds' latents at one point of the schedule."""

    pipeline: WanPipeline
    latents: Float[Tensor, "B C T H W"]
    timestep: float
    progress: float
    settings: SamplingSettings
    clips: slice

    def answers(
        self, text: TextEmbeddings, other: TextEmbeddings, blank: TextEmbeddings, edit: Edit | None
    ) -> dict[str, Float[Tensor, "B ..."]]:
        """Per seed, the changes by block and of the velocities, and the velocities themselves; on the CPU."""
        model, scale = self.pipeline.expert(self.timestep, self.settings)
        own, others = (self._rows(model, each) for each in (text, other))
        watch = _AttentionWatch(own, others, is_edited=edit is not None)
        plain = self._ask(text, True, watch if edit is None else None)
        with edit() if edit is not None else nullcontext():
            changed = self._ask(other, True, watch if edit is not None else None)
            # an edit may act on the negative side; another prompt does not
            blank_changed = self._ask(blank, False) if edit is not None and scale > 1 else None
        guided, guided_changed = plain, changed
        if scale > 1:
            unconditional = self._ask(blank, False)
            guided = guide(plain, unconditional, scale)
            guided_changed = guide(changed, unconditional if blank_changed is None else blank_changed, scale)
        return {
            "attention": torch.stack(watch.changes, dim=1).cpu(),
            "padding_mass": torch.stack(watch.masses, dim=1).cpu(),
            "velocity": _relative_change(plain, changed).cpu(),
            "guided": _relative_change(guided, guided_changed).cpu(),
            "velocity_itself": plain.cpu(),
            "guided_itself": guided.cpu(),
        }

    def _rows(self, model: WanTransformer3DModel, text: TextEmbeddings) -> TextRows:
        # as many prompts as in the run, so that equal prompts get equal bits
        return text_rows(
            model, text[[0] * len(self.latents)].to(dtype=self.pipeline.dtype), self.pipeline.folds_padding
        )

    def _ask(self, text: TextEmbeddings, conditional: bool, watch: "_AttentionWatch | None" = None) -> Tensor:
        model, _ = self.pipeline.expert(self.timestep, self.settings)
        count = len(self.latents)
        call = ModelCall(
            model=model,
            latents=self.latents.to(self.pipeline.device),
            timestep=torch.tensor(self.timestep, device=self.pipeline.device),
            text=text[[0] * count],
            conditional=(conditional,) * count,
            clips=tuple(range(self.clips.start, self.clips.start + count)),
            progress=self.progress,
        )
        around = self.pipeline.around_call(call) if self.pipeline.around_call is not None else nullcontext()
        # the watch comes last, so that it sees what edits leave behind
        with around, watch.on(model) if watch is not None else nullcontext():
            return self.pipeline.predict(call.model, call.latents, call.timestep, call.text)


class _AttentionWatch:
    """Compares, block by block while the model runs, what cross-attention answers with what it would say to other rows.

    Nothing but two numbers per clip is kept of a block.
    """

    def __init__(self, own: TextRows, other: TextRows, is_edited: bool) -> None:
        self.own, self.other, self.is_edited = own, other, is_edited
        self.changes: list[Tensor] = []
        self.masses: list[Tensor] = []

    @contextmanager
    def on(self, model: WanTransformer3DModel) -> Iterator[None]:
        """Watch the model's calls within this context."""
        with ExitStack() as stack:
            # a compiled model would not look at hooks that come after its compilation
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            for block in model.blocks:
                handle = block.get_submodule("attn2").register_forward_hook(self._look, with_kwargs=True)
                stack.callback(handle.remove)
            yield

    def _look(self, attention: WanAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if attention.add_k_proj is not None:
            raise ConfigError("this model reads image tokens beside the text; give a text-to-video model")
        asking = args[0] if args else kwargs["hidden_states"]
        alternative = WanAttnProcessor()(attention, asking, self.other.rows, self.other.bias)
        plain, changed = (alternative, output) if self.is_edited else (output, alternative)
        self.changes.append(_relative_change(plain, changed))
        mass = attention_mass(attention, asking, self.own)
        self.masses.append(mass.masked_fill(self.own.is_true, 0).sum(dim=1))


def _trajectory(
    pipeline: WanPipeline,
    text: TextEmbeddings,
    blank: TextEmbeddings,
    seeds: list[int],
    steps: Sequence[int],
    size: ClipSize,
    settings: SamplingSettings,
) -> dict[int, Float[Tensor, "S C T H W"]]:
    """The latents that enter these steps when the prompt is sampled from each seed, on the CPU."""
    found: dict[int, list[Tensor]] = {step: [] for step in steps}
    bar = track(settings.steps * len(pipeline.batches(len(seeds), size)), "sampling")
    next(bar)  # the bar counts a step when the next one is asked for

    def keep(step: int, timestep: float, latents: Tensor) -> None:
        if step + 1 in found:  # what a step returns enters the next one
            found[step + 1].append(latents.cpu())
        next(bar, None)

    pipeline.sample(text[[0] * len(seeds)], blank, size=size, settings=settings, seeds=seeds, callback=keep)
    noise = draw_noise(pipeline.grid.shape(size), seeds)
    return {step: torch.cat(chunks) if step else noise for step, chunks in found.items()}


def _one_prompt(pipeline: WanPipeline, text: str | TextEmbeddings) -> TextEmbeddings:
    encoded = pipeline.encode([text] if isinstance(text, str) else text)
    if len(encoded) != 1:
        raise ConfigError(f"{len(encoded)} prompts were given as one; give one prompt on each side")
    return encoded


def _spread_out(count: int, num_steps: int) -> list[int]:
    if not 1 <= count <= num_steps:
        raise ConfigError(f"{count} points of a schedule of {num_steps} steps; give 1 to {num_steps}")
    return [round(place * (num_steps - 1) / max(1, count - 1)) for place in range(count)]


def _relative_change(plain: Float[Tensor, "B ..."], changed: Float[Tensor, "B ..."]) -> Float[Tensor, "B"]:
    plain, changed = plain.float().flatten(1), changed.float().flatten(1)
    return _ratio((changed - plain).norm(dim=1), plain.norm(dim=1))


def _ratio(change: Float[Tensor, "B"], length: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
    return (change / length).where(change > 0, change)  # nothing changed is 0, of nothing too
