"""`latentloom steer control apply`: clips with a control vector added, after others were taken out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsArgument, PromptsFileOption, collect_prompts
from latentloom.cli.sampling import GuidanceOption, Plan, SeedOption, ShiftOption, StepsOption, seeds_per_clip
from latentloom.cli.steer_apply import FOLDER, count_blocks
from latentloom.cli.steer_clips import SteerRequest, steer_clips
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.steering.plan_file import PlanConfig

STRENGTH = 4.0  # moves every colour of MicroWan's world once the span is taken out (docs/experiments/steering.md)


def command(
    prompts: PromptsArgument = None,
    prompts_file: PromptsFileOption = None,
    add: Annotated[
        list[Path] | None, typer.Option("--add", metavar="FILE", help="A control vector to add; may be repeated.")
    ] = None,
    ablate: Annotated[
        list[Path] | None,
        typer.Option("--ablate", metavar="FILE", help="A control vector to take out; of several, their span."),
    ] = None,
    strength: Annotated[float, typer.Option("--strength", help="What added vectors are multiplied by.")] = STRENGTH,
    method: Annotated[
        Literal["add", "add_keep_norm"], typer.Option("--method", help="Whether tokens keep their length.")
    ] = "add",
    blocks: Annotated[str, typer.Option("--blocks", help="A preset such as late_blocks, or such as 0-2,5.")] = "all",
    ckpt_root: CkptRootOption = None,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of clips and report.")] = FOLDER,
    seed: SeedOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    shift: ShiftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    json_file: JsonOption = None,
) -> None:
    """Sample clips with control vectors, beside the same clips without: first take out, then add."""
    clock, captions = Stopwatch(), collect_prompts(prompts, prompts_file)
    require_writable(out / "report.html")
    config = read_plan(add or [], ablate or [], strength, method, blocks)
    seeds = seeds_per_clip(seed, len(captions))
    root = checkpoint_or_default(ckpt_root)
    with clock.time("load"):
        config.strengths(count_blocks(root))
        sampling = Plan.for_model(root, seeds, (None, None, None), steps, guidance, shift, "unipc")
        from latentloom.wan.pipeline import WanPipeline

        pipeline = WanPipeline.load(root, torch_dtype(dtype), device)
    data = str(prompts_file) if prompts_file is not None and not prompts else "prompts of the command line"
    measured = steer_clips(pipeline, SteerRequest(config, captions, sampling, out, data), clock)
    emit_json(json_file, {"ckpt_root": str(root), **measured, "seconds": clock.seconds})


def read_plan(add: list[Path], ablate: list[Path], strength: float, method: str, blocks: str) -> "PlanConfig":
    """The plan that the options describe.

    Raises:
        ConfigError: nothing to add and nothing to take out.
    """
    from latentloom.steering.plan_file import OperationConfig, PlanConfig

    if not add and not ablate:
        raise ConfigError(
            "nothing to apply; give --add FILE, --ablate FILE or both, from `latentloom steer control fit`"
        )
    operations: list[dict[str, Any]] = [{"span": tuple(ablate)}] if ablate else []
    operations += [{"vector": file, "strength": strength, "method": method} for file in add]
    return PlanConfig(operations=tuple(OperationConfig(blocks=blocks, **each) for each in operations))
