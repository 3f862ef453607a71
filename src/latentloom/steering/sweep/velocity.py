"""How far another prompt, swapped into some blocks, moves the predicted velocity: the map that any model can have.

The model is asked at points of the schedule, at the latents that it passes itself when it samples the base prompt. The
change is ||v(swapped) - v(base)|| / ||v(base)||; the floor is what another seed does under the base prompt, in the same
unit (see `functional`).
"""

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.runs import track
from latentloom.steering.functional import Spread, seed_floor
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.sweep.parts import Part
from latentloom.steering.sweep.prompts import PromptPair
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise

NUM_POINTS = 5
_FLOOR = "floor"


@dataclass(frozen=True, eq=False)
class VelocitySweep:
    """The change of the velocity of B pairs at T points of the schedule, by the part that the prompt was swapped in.

    Args:
        timesteps: the points, from noise down.
        changes: part -> [B, T].
        floor: [B, T], what another seed does.
    """

    timesteps: tuple[float, ...]
    changes: dict[Part, Float[Tensor, "B T"]]
    floor: Float[Tensor, "B T"]

    def by_timestep(self, part: Part | None) -> Spread:
        """Per point the mean over pairs with its 95 % interval; of the floor where `part` is None."""
        return Spread.over_seeds(self._of(part))

    def overall(self, part: Part | None) -> Spread:
        """The same of each pair's mean over the points."""
        return Spread.over_seeds(self._of(part).mean(dim=1))

    def to_json(self) -> dict[str, Any]:
        """Means and intervals by part, and the floor's."""
        both = {part.key: self._spreads(part) for part in self.changes}
        return {"timesteps": list(self.timesteps), "parts": both, "floor": self._spreads(None)}

    def _of(self, part: Part | None) -> Float[Tensor, "B T"]:
        return self.floor if part is None else self.changes[part]

    def _spreads(self, part: Part | None) -> dict[str, Any]:
        return {"overall": self.overall(part).to_json(), "by_timestep": self.by_timestep(part).to_json()}


@torch.no_grad()
def sweep_velocity(
    pipeline: WanPipeline,
    pairs: Sequence[PromptPair],
    parts: Iterable[Part],
    *,
    num_points: int = NUM_POINTS,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
    kept: MutableMapping[str, Any] | None = None,
) -> VelocitySweep:
    """Ask the model for its velocity once for every pair, part and point; nothing but the base prompts is sampled.

    Args:
        pipeline: any text-to-video model.
        pairs: at least two. The floor's other seeds follow the largest of theirs.
        parts: where the injected prompt stands in for the base prompt; windows have no meaning here.
        num_points: of the schedule, evenly spread over its steps, the first and the last included.
        size, settings: as in `WanPipeline.sample`; the model's own where None.
        kept: results of an earlier, interrupted sweep; every new one is added to it.

    Raises:
        ConfigError: fewer than two pairs, or more points than steps.
    """
    if len(pairs) < 2:
        raise ConfigError(f"{len(pairs)} pair; intervals are over pairs, give 2 or more")
    settings = settings or SamplingSettings.for_model(pipeline.facts)
    if not 1 <= num_points <= settings.steps:
        raise ConfigError(f"{num_points} points of a schedule of {settings.steps} steps; give 1 to {settings.steps}")
    kept = {} if kept is None else kept
    wanted = list(dict.fromkeys(parts))
    run = _Run(pipeline, list(pairs), num_points, size or ClipSize.for_model(pipeline.facts), settings)
    batches = pipeline.batches(len(pairs), run.size)
    todo = [(rows, part) for rows in batches for part in (None, *wanted) if run.key(rows, part) not in kept]
    for rows, part in track(todo, "velocities") if todo else ():
        kept[run.key(rows, part)] = run.floor(rows) if part is None else run.change(rows, part)

    def joined(part: Part | None) -> Float[Tensor, "B T"]:
        return torch.tensor([row for rows in batches for row in kept[run.key(rows, part)]])

    return VelocitySweep(tuple(run.timesteps), {part: joined(part) for part in wanted}, joined(None))


@dataclass
class _Run:
    """What a sweep asks with, and the latents and plain answers of the batch of pairs it is at."""

    pipeline: WanPipeline
    pairs: list[PromptPair]
    num_points: int
    size: ClipSize
    settings: SamplingSettings
    _at: slice | None = None
    _passed: list[Tensor] = field(default_factory=list)
    _plain: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        last, gaps = self.settings.steps - 1, max(1, self.num_points - 1)
        self.steps = [round(place * last / gaps) for place in range(self.num_points)]
        scheduler = build_scheduler(self.settings)
        self.timesteps = [float(scheduler.timesteps[step]) for step in self.steps]
        self.sigmas = [float(scheduler.sigmas[step]) for step in self.steps]
        self.base, self.injected = (
            self.pipeline.encode(prompts)
            for prompts in ([pair.base for pair in self.pairs], [pair.injected for pair in self.pairs])
        )
        self.seeds = [pair.seed for pair in self.pairs]
        self.other_seeds = [max(self.seeds) + 1 + place for place in range(len(self.pairs))]

    def key(self, rows: slice, part: Part | None) -> str:
        """Names a result: the steps, the pairs, and the part or the floor."""
        steps = ",".join(map(str, self.steps))
        return f"steps {steps}, pairs {rows.start}-{rows.stop}: {_FLOOR if part is None else part.key}"

    def change(self, rows: slice, part: Part) -> list[list[float]]:
        """Per pair and point, how far the swap moves the velocity."""
        self._enter(rows)
        plan = part.plan(self.injected[rows], len(self.pipeline.transformer.blocks))
        with steer(self.pipeline, plan):
            swapped = self._ask(self._passed, self.base[rows])
        changes = [
            (after - before).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)
            for before, after in zip(self._plain, swapped, strict=True)
        ]
        return torch.stack(changes, dim=1).tolist()

    def floor(self, rows: slice) -> list[list[float]]:
        """Per pair and point, how far apart two seeds' clips are under the base prompt."""
        self._enter(rows)
        others = self._trajectory(rows, self.other_seeds[rows])
        answers = self._ask(others, self.base[rows])
        floors = [
            torch.stack([seed_floor(torch.stack(two), torch.stack(both), sigma)[0] for two, both in _paired(*four)])
            for *four, sigma in zip(self._passed, others, self._plain, answers, self.sigmas, strict=True)
        ]
        return torch.stack(floors, dim=1).tolist()

    def _enter(self, rows: slice) -> None:
        if self._at != rows:
            self._passed = self._trajectory(rows, self.seeds[rows])
            self._plain = self._ask(self._passed, self.base[rows])
            self._at = rows

    def _trajectory(self, rows: slice, seeds: list[int]) -> list[Float[Tensor, "B C T H W"]]:
        """The latents that enter the chosen steps, on the CPU."""
        passed = [draw_noise(self.pipeline.grid.shape(self.size), seeds)]

        def keep(step: int, timestep: float, latents: Tensor) -> None:
            if step + 1 in self.steps:  # what a step returns enters the next one
                passed.append(latents.cpu())

        self.pipeline.sample(self.base[rows], size=self.size, settings=self.settings, seeds=seeds, callback=keep)
        return passed

    def _ask(self, latents: Sequence[Tensor], text: TextEmbeddings) -> list[Float[Tensor, "B C T H W"]]:
        device = self.pipeline.device
        return [
            self.pipeline.velocity(each.to(device), torch.tensor(timestep, device=device), text).cpu()
            for each, timestep in zip(latents, self.timesteps, strict=True)
        ]


def _paired(first: Tensor, second: Tensor, answer: Tensor, other_answer: Tensor) -> list[tuple[tuple, tuple]]:
    """Row by row: both seeds' latents, and both answers."""
    latents, answers = zip(first, second, strict=True), zip(answer, other_answer, strict=True)
    return list(zip(latents, answers, strict=True))
