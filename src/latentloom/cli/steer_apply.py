"""`latentloom steer apply`: prompts and a plan in; the clips with it, without it and with the injected prompt out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsArgument, PromptsFileOption, collect_prompts
from latentloom.cli.sampling import (
    BatchSizeOption,
    Fp8Option,
    GuidanceOption,
    HeightOption,
    NegativePromptOption,
    NumFramesOption,
    OffloadOption,
    Plan,
    SamplerOption,
    SeedOption,
    ShiftOption,
    StepsOption,
    WidthOption,
    seeds_per_clip,
)
from latentloom.cli.steer_clips import SteerRequest, steer_clips
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.steering.plan_file import PlanConfig

FOLDER = Path("reports/steer")
FLAGS = "--inject, --blocks, --strength, --mode, --method, --window, --side and --tokens"

Mode = Literal["context", "hidden_states", "both"]
InjectOption = Annotated[
    list[str] | None,
    typer.Option("--inject", metavar="PROMPT", help="What to inject; once for all clips, or given once per clip."),
]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="A TOML file of operations, in place of --inject.")
]


def command(
    prompts: PromptsArgument = None,
    prompts_file: PromptsFileOption = None,
    inject: InjectOption = None,
    plan_file: PlanOption = None,
    blocks: Annotated[
        str | None, typer.Option("--blocks", help="A preset such as late_blocks, or such as 0-2,5; all if not given.")
    ] = None,
    strength: Annotated[
        str | None,
        typer.Option("--strength", help="Share of the injected prompt; 1 if not given, 0.2..1 is a ramp."),
    ] = None,
    mode: Annotated[Mode | None, typer.Option("--mode", help="Where in a block; context if not given.")] = None,
    method: Annotated[
        Literal["lerp", "replace"] | None, typer.Option("--method", help="By a share or whole; lerp if not given.")
    ] = None,
    window: Annotated[
        str | None,
        typer.Option("--window", metavar="FROM,TO", help="Share of the schedule, noise first; 0,1 if not given."),
    ] = None,
    side: Annotated[
        Literal["cond", "uncond", "both"] | None,
        typer.Option("--side", help="Of guidance's predictions; cond if not given: changing both cancels."),
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", help="text, all (padding too), or positions FROM,TO; text if not given.")
    ] = None,
    ckpt_root: CkptRootOption = None,
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of clips and report.")] = FOLDER,
    seed: SeedOption = None,
    num_frames: NumFramesOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    shift: ShiftOption = None,
    sampler: SamplerOption = "unipc",
    negative_prompt: NegativePromptOption = "",
    batch_size: BatchSizeOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = "none",
    fp8: Fp8Option = False,
    json_file: JsonOption = None,
) -> None:
    """Steer the sampling of each prompt, beside the plain clip and the one of the injected prompt.

    Settings that are not given are the model's own.
    """
    clock, captions = Stopwatch(), collect_prompts(prompts, prompts_file)
    require_writable(out / "report.html")
    seeds = seeds_per_clip(seed, len(captions))
    root = checkpoint_or_default(ckpt_root)
    with clock.time("load"):
        flags = {"blocks": blocks, "strength": strength, "method": method, "side": side}
        config = read_plan(plan_file, inject, mode, {**flags, "window": window, "tokens": tokens})
        config.strengths(count_blocks(root))
        sampling = Plan.for_model(root, seeds, (num_frames, height, width), steps, guidance, shift, sampler)
        if negative_prompt and not sampling.settings.is_guided:
            raise ConfigError("--negative-prompt has no effect without guidance; drop it, or give --guidance above 1")
        from latentloom.wan.pipeline import WanPipeline

        pipeline = WanPipeline.load(root, torch_dtype(dtype), device, offload, fp8)
    data = str(prompts_file) if prompts_file is not None and not prompts else "prompts of the command line"
    request = SteerRequest(config, captions, sampling, out, data, negative_prompt, batch_size)
    measured = steer_clips(pipeline, request, clock)
    emit_json(json_file, {"ckpt_root": str(root), **measured, "seconds": clock.seconds})


def read_plan(
    file: Path | None, inject: list[str] | None, mode: Mode | None, flags: dict[str, str | None]
) -> "PlanConfig":
    """The plan of a file, paths resolved, or the one that the flags describe.

    Raises:
        ConfigError: both or neither, or flags that are not understood.
        FileError: no such file.
    """
    from latentloom.steering.plan_file import OperationConfig, PlanConfig, load_plan_config, resolve_paths

    given = {name: value for name, value in flags.items() if value is not None}
    if file is not None:
        if inject or mode is not None or given:
            raise ConfigError(f"--plan and flags were both given; the file says what {FLAGS} would: drop either")
        return resolve_paths(load_plan_config(file), file.parent)
    if not inject:
        raise ConfigError("nothing to steer with; give --inject PROMPT, or --plan FILE")
    settings: dict[str, Any] = dict(given)
    if "window" in given:
        settings["window"] = _pair("window", given["window"], float, "two shares of the schedule such as 0,0.5")
    if given.get("tokens", "text") not in ("text", "all"):
        settings["tokens"] = _pair("tokens", given["tokens"], int, "text, all, or two positions such as 0,5")
    payload: dict[str, Any] = {"prompt": inject[0]} if len(inject) == 1 else {"prompts": tuple(inject)}
    sites = ("context", "hidden_states") if mode == "both" else (mode or "context",)
    return PlanConfig(operations=tuple(OperationConfig(site=site, **settings, **payload) for site in sites))


def count_blocks(root: Path) -> int:
    """Blocks of a checkpoint's transformer, from its headers.

    Raises:
        CheckpointError: there is no Wan transformer.
    """
    from latentloom.wan.checkpoints import recognise
    from latentloom.wan.pipeline import facts_of

    facts_of(root)  # says so where there is none
    return next(part.derived_config["num_layers"] for part in recognise(root).components if part.role == "transformer")


def _pair(name: str, text: str, kind: type, wanted: str) -> tuple[Any, Any]:
    try:
        first, second = map(kind, text.split(","))
    except ValueError:
        raise ConfigError(f"--{name} {text!r} is not understood; give {wanted}") from None
    return first, second
