"""`latentloom steer measure`: how far two prompts are apart, and what the model makes of the difference."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import collect_prompts
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
from latentloom.cli.stopwatch import Stopwatch
from latentloom.cli.tables import print_table
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.steering.measure_report import Measured
    from latentloom.wan.pipeline import WanPipeline

FOLDER = Path("reports/steer_measure")
NUM_SEEDS = 8
NUM_POINTS = 5


def command(
    first: Annotated[str, typer.Argument(metavar="PROMPT", help="The one that the model samples, A.")],
    second: Annotated[str, typer.Argument(metavar="PROMPT", help="The one that it is asked about instead, B.")],
    ckpt_root: CkptRootOption = None,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the report.")] = FOLDER,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="How many, from 0 on; intervals are over them.")] = (
        NUM_SEEDS
    ),
    points: Annotated[int, typer.Option("--points", min=1, help="Points of the sampling schedule.")] = NUM_POINTS,
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
    """Measure two prompts: their embeddings before and after the text embedder, and the model's answers to them.

    Settings that are not given are the model's own.
    """
    prompts = collect_prompts([first, second], None)
    require_writable(out / "report.html")
    root, clock = checkpoint_or_default(ckpt_root), Stopwatch()
    with clock.time("load"):
        size = (num_frames, height, width)
        plan = Plan.for_model(root, list(range(seeds)), size, steps, guidance, shift, "unipc")
        if points > plan.settings.steps:
            raise ConfigError(
                f"--points {points} of a schedule of {plan.settings.steps} steps; give at most as many as steps"
            )
        from latentloom.steering.measure_report import measure_json, write_measure_report
        from latentloom.wan.pipeline import WanPipeline

        pipeline = WanPipeline.load(root, torch_dtype(dtype), device, offload, fp8)
    measured = measure(pipeline, prompts, plan, points, clock)
    placement = {"device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch.")}
    facts = {"ckpt_root": str(root), **plan.as_json(), **placement}
    page = write_measure_report(out, (first, second), measured, facts)
    show(measured)
    typer.echo(f"report: {page}")
    told = measure_json((first, second), measured, facts)
    emit_json(json_file, {**told, "report": str(page), "seconds": clock.seconds})


def measure(pipeline: "WanPipeline", prompts: list[str], plan: Plan, points: int, clock: Stopwatch) -> "Measured":
    """The two prompts before and after the text embedder, and what the model makes of their difference."""
    from latentloom.steering.functional import functional_effect
    from latentloom.steering.measure import measure_bottleneck

    with clock.time("embeddings"):
        pair = pipeline.encode(prompts)
        bottleneck = measure_bottleneck(pipeline, pair[0], pair[1])
    with clock.time("answers"):
        how = {"seeds": plan.seeds, "num_timesteps": points, "size": plan.size, "settings": plan.settings}
        effect = functional_effect(pipeline, pair[0], pair[1], **how)
    return bottleneck, effect


def show(measured: "Measured") -> None:
    """The report's tables and sentences on the terminal."""
    from latentloom.steering.measure_report import diluted_table, effect_table, figures_table, verdict

    bottleneck, effect = measured
    for table in (figures_table(bottleneck), diluted_table(bottleneck), effect_table(effect)):
        print_table(*table)
    for sentence in verdict(bottleneck, effect):
        typer.echo(sentence)
