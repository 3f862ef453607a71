"""`latentloom steer sweep`: which blocks listen to the prompt, by the velocity and, on MicroWan, by each attribute."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.sampling import (
    Fp8Option,
    GuidanceOption,
    HeightOption,
    NumFramesOption,
    OffloadOption,
    Plan,
    ShiftOption,
    StepsOption,
    WidthOption,
)
from latentloom.cli.steer_sweep_run import Choice, Sweep, run_sweep
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.micro.steering_sweep import QuestionPair
    from latentloom.steering.sweep.prompts import PromptPair

FOLDER = Path("runs/steer_sweep")
NUM_PAIRS = 24
NUM_WINDOWS = 5
NUM_POINTS = 5


def command(
    num_pairs: Annotated[
        int | None,
        typer.Option("--num-pairs", min=2, help="Pairs of prompts, each with a seed; 24, or as many as in --prompts."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the prompts and of the noise.")] = 0,
    sets: Annotated[
        str | None,
        typer.Option("--sets", help="Of single, prefix, suffix, left_out, presets, windows, comma-separated; all."),
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Sweep all subsets of blocks, for exact Shapley values per attribute.")
    ] = False,
    permutations: Annotated[
        int, typer.Option("--permutations", min=0, help="Or so many random orders of the blocks, for estimates.")
    ] = 0,
    group_size: Annotated[int, typer.Option("--group-size", min=1, help="Blocks that are swapped together.")] = 1,
    windows: Annotated[
        int | None, typer.Option("--windows", min=1, help="Windows of the schedule, for attributes; 5.")
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=1, help="Points of the schedule, for the velocity.")
    ] = NUM_POINTS,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", metavar="FILE", help='JSON lines: {"base": "a prompt", "injected": "another"}.'),
    ] = None,
    ckpt_root: CkptRootOption = None,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the run; an interrupted one continues.")
    ] = FOLDER,
    num_frames: NumFramesOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    shift: ShiftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = "none",
    fp8: Fp8Option = False,
    json_file: JsonOption = None,
) -> None:
    """Swap another prompt into some blocks at a time, and map what changes, with 95 % intervals over pairs.

    Every model gets a map of its velocity. MicroWan's clips are also read: which blocks, and which share of the
    schedule, carry colour, shape, size, motion and background.
    """
    require_writable(out / "report.html")
    root, clock = checkpoint_or_default(ckpt_root), Stopwatch()
    with clock.time("load"):
        plan = Plan.for_model(root, [seed], (num_frames, height, width), steps, guidance, shift, "unipc")
        reads_clips = plan.facts.key == "micro"
        _check(plan, reads_clips, points, exact, permutations, sets, windows)
        pairs = choose_pairs(plan, prompts, num_pairs, seed)
        from latentloom.wan.pipeline import WanPipeline

        pipeline = WanPipeline.load(root, torch_dtype(dtype), device, offload, fp8)
    choice = Choice(
        sets=tuple(name.strip() for name in sets.split(",")) if sets is not None else None,
        exact=exact,
        permutations=permutations,
        group_size=group_size,
        num_windows=windows or NUM_WINDOWS,
        num_points=points,
        seed=seed,
    )
    emit_json(json_file, run_sweep(Sweep(pipeline, plan, pairs, choice), root, out, clock))


def choose_pairs(
    plan: Plan, prompts: Path | None, num_pairs: int | None, seed: int
) -> "list[PromptPair] | list[QuestionPair]":
    """The pairs of the file, or MicroWan's held-out questions; where clips are read, with what they ask for.

    Raises:
        ConfigError: another model than MicroWan and no file, or fewer than two pairs.
        FileError: the file holds no pairs.
        PromptError: MicroWan's world shows nothing of the file's pairs.
    """
    from latentloom.steering.prompt_pairs import read_prompt_pairs
    from latentloom.steering.sweep.prompts import KEYS, seed_pairs

    reads_clips = plan.facts.key == "micro"
    if prompts is None:
        if not reads_clips:
            raise ConfigError(
                f"{plan.facts.title} has no prompts of its own; give --prompts FILE, JSON lines with base and injected"
            )
        from latentloom.micro.steering_sweep import question_pairs

        return question_pairs(num_pairs or NUM_PAIRS, seed)
    pairs = seed_pairs(read_prompt_pairs(prompts, KEYS), num_pairs, seed)
    if len(pairs) < 2:
        raise ConfigError(f"{prompts} holds one pair, and intervals are over pairs; give more, or --num-pairs")
    if not reads_clips:
        return pairs
    from latentloom.micro.steering_sweep import questions_of_pairs

    return questions_of_pairs(pairs)


def _check(
    plan: Plan,
    reads_clips: bool,
    points: int,
    exact: bool,
    permutations: int,
    sets: str | None,
    windows: int | None,
) -> None:
    """Refuse before the model is loaded what cannot be done with it."""
    if points > plan.settings.steps:
        raise ConfigError(
            f"--points {points} of a schedule of {plan.settings.steps} steps; give at most as many as steps"
        )
    if exact and permutations:
        raise ConfigError("--exact was given with --permutations, which estimates the same figures: drop one")
    about_attributes: dict[str, Any] = {
        "--exact": exact,
        "--permutations": permutations,
        "--windows": windows,
        "--sets windows": sets is not None and "windows" in sets.split(","),
    }
    for option, given in about_attributes.items():
        if given and not reads_clips:
            raise ConfigError(
                f"{option} is about attributes read from clips, which {plan.facts.title} does not have: drop it"
            )
    if reads_clips and plan.size.height != plan.size.width:
        raise ConfigError(f"{plan.size.width}x{plan.size.height}: MicroWan's world is square; give equal sides")
