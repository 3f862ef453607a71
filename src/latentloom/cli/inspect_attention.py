"""`latentloom inspect attention ADAPTER`: how far an adapter moves the attention logits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentloom.cli.inspect_options import AdapterArgument, ExpertOption, ReportOption, prompts_for, transformer_for
from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, torch_dtype
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsFileOption
from latentloom.cli.sampling import (
    Fp8Option,
    HeightOption,
    NumFramesOption,
    OffloadOption,
    Plan,
    ShiftOption,
    StepsOption,
    WidthOption,
)
from latentloom.cli.tables import print_table

if TYPE_CHECKING:
    from latentloom.finetune.probes.attention import AttentionDrift

_NUM_PROMPTS = 4


def command(
    adapter: AdapterArgument,
    ckpt_root: CkptRootOption = None,
    prompts_file: PromptsFileOption = None,
    points: Annotated[int, typer.Option("--points", min=1, help="Timesteps, spread over the sampling schedule.")] = 3,
    num_queries: Annotated[int, typer.Option("--num-queries", min=1, help="Video tokens whose logits count.")] = 256,
    cap: Annotated[
        float | None,
        typer.Option("--cap", min=0, help="Largest distance from 1 allowed, such as 0.1; above it the check fails."),
    ] = None,
    expert: ExpertOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of noise and queries.")] = 0,
    num_frames: NumFramesOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    steps: StepsOption = None,
    shift: ShiftOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offload: OffloadOption = "none",
    fp8: Fp8Option = False,
    out: ReportOption = None,
    json_file: JsonOption = None,
) -> None:
    """Compare the spread of attention logits before and after an adapter, by block, in cross- and self-attention.

    The model samples each prompt without the adapter; at some timesteps of that path both are asked. With --cap the
    command exits with code 2 when a ratio is further from 1, after the report is written.
    """
    from latentloom.finetune.adapter_files import adapter_file, read_adapter
    from latentloom.finetune.probes.lora_delta import stored_keys
    from latentloom.finetune.probes.report import describe_files, require_report_folder

    require_report_folder(out, "attention")
    root, file = checkpoint_or_default(ckpt_root), adapter_file(adapter)
    prompts = prompts_for(root, prompts_file, _NUM_PROMPTS)
    plan = Plan.for_model(root, [seed], (num_frames, height, width), steps, None, shift, "unipc")
    pairs, base = read_adapter(file), transformer_for(file, root, expert)
    stored_keys(pairs, base, file)  # says now, from headers, what would not fit after minutes of loading

    from latentloom.finetune.probes.attention import attention_drift
    from latentloom.finetune.probes.attention_report import write_attention_report
    from latentloom.wan.pipeline import WanPipeline

    pipeline = WanPipeline.load(root, torch_dtype(dtype), device, offload, fp8)
    drift = attention_drift(
        pipeline,
        pairs,
        pipeline.encode(prompts),
        transformer=pipeline.transformer_2 if base.expert == "low" else None,
        seed=seed,
        num_points=points,
        num_queries=num_queries,
        size=plan.size,
        settings=plan.settings,
    )
    inputs: dict[str, Any] = {
        "adapter": describe_files([file]),
        "base": describe_files(base.shards.files, hashed=False),
        "prompts": prompts,
    }
    placement = {"device": str(pipeline.device), "dtype": str(pipeline.dtype).removeprefix("torch.")}
    settings = {"cap": cap, "expert": base.expert, "num_queries": num_queries, **plan.as_json(), **placement}
    page, summary = write_attention_report(drift, cap, inputs, settings, out)
    emit_json(json_file, {**summary, "report": str(page)})
    show(drift, cap, page)


def show(drift: "AttentionDrift", cap: float | None, page: Path) -> None:
    """The report's table and sentence on the terminal.

    Raises:
        CapError: a ratio is further from 1 than the cap.
    """
    from latentloom.finetune.probes.attention_report import SUMMARY_COLUMNS, furthest, summary_rows, verdict
    from latentloom.finetune.probes.report import CapError

    print_table(list(SUMMARY_COLUMNS), summary_rows(drift))
    typer.echo(verdict(drift, cap))
    typer.echo(f"report: {page}")
    if cap is not None and drift.drift > cap:
        raise CapError(
            f"the attention logits drift by {drift.drift:.4g}, above --cap {cap}, most in {furthest(drift)}; "
            f"lower the adapter's strength or train less, see {page}"
        )
