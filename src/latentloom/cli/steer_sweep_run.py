"""What `latentloom steer sweep` does once its model is loaded: ask, sample, read, report, record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentloom.cli.sampling import Plan
from latentloom.cli.stopwatch import Stopwatch

if TYPE_CHECKING:
    from latentloom.micro.steering_sweep import QuestionPair
    from latentloom.steering.sweep.attribution import Contributions
    from latentloom.steering.sweep.parts import Part
    from latentloom.steering.sweep.prompts import PromptPair
    from latentloom.steering.sweep.report import Families, Section
    from latentloom.steering.sweep.results import SweepFile
    from latentloom.wan.pipeline import WanPipeline

_PAIRS_SHOWN = 3
_MOST_CLIPS_IN_A_ROW = 12


@dataclass(frozen=True)
class Choice:
    """What to sweep; the options of these names. `sets` is None where all that the model can have are meant."""

    sets: tuple[str, ...] | None
    exact: bool
    permutations: int
    group_size: int
    num_windows: int
    num_points: int
    seed: int


@dataclass(frozen=True)
class Attribution:
    """Which parts attribution needs, in which orders blocks are added (None: all subsets), and that in words."""

    parts: "list[Part]"
    orders: "Sequence[Sequence[int]] | None"
    method: str


class Sweep:
    """One run of the command, with everything that its steps share.

    Args:
        pipeline: the loaded model.
        plan: what is sampled.
        pairs: questions where clips are read, else prompts.
        choice: what to sweep.

    Raises:
        ConfigError: sets or groups that this model cannot have.
    """

    def __init__(
        self,
        pipeline: "WanPipeline",
        plan: Plan,
        pairs: "Sequence[PromptPair] | Sequence[QuestionPair]",
        choice: Choice,
    ) -> None:
        from latentloom.micro.steering_sweep import QuestionPair
        from latentloom.steering.sweep.parts import FAMILIES, Units, part_families
        from latentloom.steering.sweep.prompts import PromptPair

        self.pipeline, self.plan, self.choice = pipeline, plan, choice
        num_blocks = len(pipeline.transformer.blocks)
        self.units = Units.of_blocks(num_blocks, choice.group_size)
        self.windows = Units.of_windows(choice.num_windows, num_blocks)
        self.questions = [pair for pair in pairs if isinstance(pair, QuestionPair)]
        self.prompts = [pair for pair in pairs if isinstance(pair, PromptPair)] or [
            PromptPair(pair.base.prompt, pair.injected.prompt, pair.seed) for pair in self.questions
        ]
        able = [name for name in FAMILIES if self.questions or name != "windows"]
        self.families = part_families(choice.sets or able, self.units, self.windows, num_blocks)
        self.attribution = self._attribution() if self.questions else None

    def settings(self, root: Path) -> dict[str, Any]:
        """What all results depend on."""
        return {
            "checkpoint": str(root),
            "dtype": str(self.pipeline.dtype).removeprefix("torch."),
            "size": asdict(self.plan.size),
            "sampling": asdict(self.plan.settings),
            "pairs": [[pair.base, pair.injected, pair.seed] for pair in self.prompts],
        }

    def measure_velocity(self, file: "SweepFile") -> "tuple[dict[str, Any], list[Section]]":
        """The velocity's results as JSON values, and its section of the page; nothing where only windows are swept."""
        from latentloom.steering.sweep.report import velocity_section
        from latentloom.steering.sweep.velocity import sweep_velocity

        families = {name: parts for name, parts in self.families.items() if not name.startswith("windows")}
        if not families:
            return {}, []
        sweep = sweep_velocity(
            self.pipeline,
            self.prompts,
            [*_parts(families), self.units.every()],
            num_points=self.choice.num_points,
            size=self.plan.size,
            settings=self.plan.settings,
            kept=file.section("velocity"),
        )
        return {"velocity": sweep.to_json()}, [velocity_section(sweep, families, self.units)]

    def measure_attributes(self, file: "SweepFile") -> "tuple[dict[str, Any], list[Section], list[str]]":
        """The attributes' results as JSON values, their sections of the page, and what they say in plain words."""
        from latentloom.micro.steering_sweep import sweep_attributes
        from latentloom.micro.steering_sweep_report import (
            attribute_section,
            contributions_of,
            verdict,
            window_contributions,
            window_section,
        )

        attribution = self.attribution
        needed = attribution.parts if attribution is not None else []
        sweep = sweep_attributes(
            self.pipeline,
            self.questions,
            [self.units.join([]), self.units.every(), *_parts(self.families), *needed],
            size=self.plan.size,
            settings=self.plan.settings,
            kept=file.section("readings"),
        )
        blocks: dict[str, Contributions] = {}
        method = ""
        if attribution is not None:
            blocks, method = contributions_of(sweep, self.units, attribution.orders), attribution.method
        sections = [attribute_section(sweep, self.families, self.units, blocks, method)]
        in_time = {}
        if "windows" in self.families:
            in_time = window_contributions(sweep, self.windows)
            sections.append(window_section(sweep, self.families, self.windows, in_time))
        results = {
            "attributes": sweep.to_json(),
            "contributions": {
                "method": method,
                "units": list(self.units.names),
                **{name: found.to_json() for name, found in blocks.items()},
            },
            "window_contributions": {
                "units": list(self.windows.names),
                **{name: found.to_json() for name, found in in_time.items()},
            },
        }
        return results, [*sections, self._examples()], verdict(sweep, self.units.every(), blocks, self.units)

    def _attribution(self) -> Attribution | None:
        """How the blocks' contributions are had; None where the sets asked for do not allow any."""
        from latentloom.steering.sweep.parts import plain_orders, random_orders

        if self.choice.exact:
            return Attribution(self.units.subsets(), None, "Shapley values, exact, from all subsets")
        if self.choice.permutations:
            orders = random_orders(len(self.units), self.choice.permutations, self.choice.seed)
            method = f"Shapley values, the mean over {len(orders)} random orders"
        elif {"prefix", "suffix"} <= self.families.keys():
            orders = plain_orders(len(self.units))
            method = "the mean of adding them from the first on and from the last on"
        else:
            return None
        return Attribution([part for order in orders for part in self.units.along(order)], orders, method)

    def _examples(self) -> "Section":
        from latentloom.micro.steering_sweep import sample_clips
        from latentloom.micro.steering_sweep_report import clips_section
        from latentloom.runs import track

        pairs = self.questions[:_PAIRS_SHOWN]
        singles = {f"{self.units.noun} {name}": part for name, part in self.units.single().items()}
        kept = dict(list(singles.items())[:_MOST_CLIPS_IN_A_ROW])
        parts = {"the base prompt": self.units.join([]), **kept, "all": self.units.every()}
        clips = {
            label: sample_clips(self.pipeline, pairs, part, self.plan.size, self.plan.settings)
            for label, part in track(list(parts.items()), "examples")
        }
        rows = [
            (
                f"Base: {pair.base.prompt}\nInjected: {pair.injected.prompt}",
                [(label, frames[place], self.plan.facts.fps) for label, frames in clips.items()],
            )
            for place, pair in enumerate(pairs)
        ]
        return clips_section(rows)


def run_sweep(sweep: Sweep, root: Path, out: Path, clock: Stopwatch) -> dict[str, Any]:
    """Sweep, and leave the page, its pictures, all results and the record in `out`; what was measured, as JSON values.

    Raises:
        ConfigError: `out` holds a sweep with other settings.
        FileError: `out` cannot be written to.
    """
    from latentloom.runs import RunFolder
    from latentloom.steering.sweep.report import write_sweep_report
    from latentloom.steering.sweep.results import SWEEP_NAME, SweepFile
    from latentloom.storage import write_json

    settings = sweep.settings(root)
    file = SweepFile(out / SWEEP_NAME, settings)
    seeds = [pair.seed for pair in sweep.prompts]
    config = {"checkpoint": str(root), "num_pairs": len(seeds), **asdict(sweep.choice)}
    introduction = _introduction(sweep)
    with RunFolder.at(out, config, seeds=seeds, data=f"{len(seeds)} pairs of prompts") as run:
        with clock.time("velocity"):
            measured, sections = sweep.measure_velocity(file)
        sentences: list[str] = []
        if sweep.questions:
            with clock.time("clips"):
                results, more, sentences = sweep.measure_attributes(file)
            measured, sections = {**results, **measured}, [*more[:-1], *sections, more[-1]]
        page = write_sweep_report(out, introduction, sections)
        measured = {**settings, "choice": asdict(sweep.choice), **measured, "verdict": sentences}
        write_json(out / "results.json", measured)
        run.finish({name: measured[name] for name in ("contributions", "verdict") if name in measured})
    for sentence in sentences:
        typer.echo(sentence)
    typer.echo(f"report: {page}")
    return {**measured, "report": str(page), "seconds": clock.seconds}


def _introduction(sweep: Sweep) -> str:
    return (
        f"{sweep.plan.facts.title}, {len(sweep.pipeline.transformer.blocks)} blocks, {len(sweep.prompts)} pairs of "
        "prompts. The model samples the base prompt; in some blocks, cross-attention reads the other prompt's rows "
        "instead, on the positive side of guidance. Intervals are 95 %, over pairs."
    )


def _parts(families: "Families") -> "list[Part]":
    return [part for parts in families.values() for part in parts.values()]
