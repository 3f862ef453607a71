"""Clips steered by a plan, for the commands that do so: sampled, measured, shown and recorded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latentloom.cli.sampling import Plan as SamplingPlan
from latentloom.cli.stopwatch import Stopwatch
from latentloom.cli.tables import print_table

if TYPE_CHECKING:
    from torch import Tensor

    from latentloom.steering.apply_report import AppliedClips
    from latentloom.steering.plan_file import PlanConfig
    from latentloom.wan.pipeline import WanPipeline

CLIPS_ON_TERMINAL = 8


@dataclass(frozen=True)
class SteerRequest:
    """What to steer and where it goes.

    Args:
        config: the plan, with paths that hold from the working directory.
        prompts: of the clips.
        sampling: size, settings and a seed per clip.
        out: folder of the run.
        data: where the prompts are from, in words.
        negative_prompt, batch_size: as the options of these names.
    """

    config: "PlanConfig"
    prompts: list[str]
    sampling: SamplingPlan
    out: Path
    data: str
    negative_prompt: str = ""
    batch_size: int | None = None


def steer_clips(pipeline: "WanPipeline", request: SteerRequest, clock: Stopwatch) -> dict[str, Any]:
    """Sample the clips plain, steered and swapped, write the folder and print what came of it; returns JSON values.

    Raises:
        ConfigError: the plan fits neither itself, the model nor the clips; nothing is sampled or written then.
    """
    from latentloom.runs import RunFolder
    from latentloom.steering.apply import apply_plan, check_plan
    from latentloom.steering.apply_report import AppliedClips, verdict, write_applied
    from latentloom.steering.plan_file import build_plan, plan_to_toml, plan_values
    from latentloom.storage import write_text

    config, prompts, sampling, out = request.config, request.prompts, request.sampling, request.out
    with clock.time("encoding"):
        text = pipeline.encode(prompts)
        plan = build_plan(config, len(pipeline.transformer.blocks), pipeline.encode)
        check_plan(pipeline, plan, len(prompts))
    placement = {"device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch.")}
    facts = {**sampling.as_json(), **placement, "negative_prompt": request.negative_prompt, "prompts": prompts}
    with RunFolder.at(out, {**facts, **plan_values(config)}, seeds=sampling.seeds, data=request.data) as run:
        write_text(out / "plan.toml", plan_to_toml(config))
        with clock.time("sampling"):
            options = {"size": sampling.size, "settings": sampling.settings, "seeds": sampling.seeds}
            applied = apply_plan(
                pipeline, text, plan, request.negative_prompt, **options, batch_size=request.batch_size
            )
        with clock.time("decoding"):
            frames = {name: pipeline.decode(latents, request.batch_size) for name, latents in applied.runs.items()}
        injected = None if applied.swapped is None else injected_captions(config, len(prompts))
        readings = read_attributes(frames) if pipeline.facts.key == "micro" else None
        clips = AppliedClips(plan, applied, prompts, injected, sampling.seeds, frames, sampling.facts.fps, readings)
        with clock.time("writing"):
            files = {"plan": str(out / "plan.toml"), **write_applied(out, clips)}
        run.count(len(applied.runs) * len(prompts), "clips")
        measured = measurements(clips)
        run.finish({**measured, "files": files}, decision=" ".join(verdict(clips)))
    print_applied(clips)
    typer.echo(f"report: {files['report']}")
    return {**facts, "operations": plan.describe(), **measured, "files": files}


def print_applied(clips: "AppliedClips") -> None:
    """The plan, what each run shows and what the plan did, on the terminal."""
    from latentloom.steering.apply_report import effect_table, flips_table, plan_table, verdict

    _print(*plan_table(clips.plan))
    _print(*effect_table(clips, CLIPS_ON_TERMINAL))
    if len(clips.prompts) > CLIPS_ON_TERMINAL:
        typer.echo(f"The first {CLIPS_ON_TERMINAL} of {len(clips.prompts)} clips; the report shows all.\n")
    if clips.flips() and len(clips.prompts) > 1:
        _print(*flips_table(clips))
    for sentence in verdict(clips):
        typer.echo(sentence)


def injected_captions(config: "PlanConfig", num_clips: int) -> list[str]:
    """What the swapped run is sampled from, clip by clip: the words of the first operation that injects text."""
    for each in config.operations:
        if each.side == "uncond":
            continue
        if each.embeddings is not None and each.space != "model":
            return [f"{each.embeddings.name} [{index}]" for index in range(num_clips)]
        prompts = each.prompts or ((each.prompt,) if each.prompt is not None else ())
        if prompts:
            return list(prompts) * num_clips if len(prompts) == 1 else list(prompts)
    return []


def read_attributes(frames: "dict[str, Tensor]") -> "dict[str, list[dict[str, str]]] | None":
    """What each run's clips show of MicroWan's world; None for clips that are not square, which its reader takes."""
    from latentloom.micro.read import read_clips
    from latentloom.micro.score import to_unit_range

    _, _, height, width, _ = frames["plain"].shape
    if height != width:
        return None
    return {
        run: [reading.attributes.mentioned() for reading in read_clips(to_unit_range(clips))]
        for run, clips in frames.items()
    }


def measurements(clips: "AppliedClips") -> dict[str, Any]:
    """What the plan did, over all clips and clip by clip, as JSON values; null where there is no swapped run."""
    applied = clips.applied
    swapped = applied.equals_swapped
    return {
        "injected": None if clips.injected is None else list(clips.injected),
        "equals_plain": all(applied.equals_plain),
        "equals_swapped": None if swapped is None else all(swapped),
        "velocity_change": float(applied.velocity.mean()),
        "guided_velocity_change": float(applied.guided.mean()),
        "attribute_flips": clips.flips(),
        "clips": [_of_clip(clips, index) for index in range(len(clips.prompts))],
    }


def _of_clip(clips: "AppliedClips", index: int) -> dict[str, Any]:
    applied = clips.applied
    swapped = applied.equals_swapped
    return {
        "prompt": clips.prompts[index],
        "injected": None if clips.injected is None else clips.injected[index],
        "seed": clips.seeds[index],
        "equals_plain": applied.equals_plain[index],
        "equals_swapped": None if swapped is None else swapped[index],
        "velocity_change": float(applied.velocity[index].mean()),
        "guided_velocity_change": float(applied.guided[index].mean()),
        "velocity_change_by_step": applied.velocity[index].tolist(),
        "guided_velocity_change_by_step": applied.guided[index].tolist(),
        "attributes": None
        if clips.readings is None
        else {run: dict(all_[index]) for run, all_ in clips.readings.items()},
    }


def _print(columns: list[str], rows: list[list[Any]]) -> None:
    print_table(columns, [["-" if cell is None else cell for cell in row] for row in rows])
