"""`latentloom inspect lora-delta ADAPTER`: how large an adapter's changes are beside the weights they change."""

from typing import Annotated

import typer

from latentloom.cli.inspect_options import AdapterArgument, ExpertOption, ReportOption, transformer_for
from latentloom.cli.model import checkpoint_or_default
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.tables import print_table


def command(
    adapter: AdapterArgument,
    ckpt_root: CkptRootOption = None,
    cap: Annotated[
        float | None, typer.Option("--cap", min=0, help="Largest ratio allowed, such as 0.1; above it the check fails.")
    ] = None,
    expert: ExpertOption = None,
    out: ReportOption = None,
    json_file: JsonOption = None,
) -> None:
    """Measure ||dW|| / ||W|| of every adapted weight, by type and block; base weights are read one at a time.

    With --cap the command exits with code 2 when a ratio is above it, after the report is written.
    """
    from latentloom.finetune.adapter_files import adapter_file, read_adapter
    from latentloom.finetune.probes.lora_delta import above, lora_deltas
    from latentloom.finetune.probes.lora_delta_report import (
        SUMMARY_COLUMNS,
        summary_rows,
        verdict,
        write_lora_delta_report,
    )
    from latentloom.finetune.probes.report import CapError, describe_files, require_report_folder

    require_report_folder(out, "lora-delta")
    root, file = checkpoint_or_default(ckpt_root), adapter_file(adapter)
    pairs = read_adapter(file)
    base = transformer_for(file, root, expert)
    targets = lora_deltas(pairs, base, file)
    inputs = {
        "adapter": describe_files([file]),
        "base": describe_files(base.shards.files, hashed=False),
    }
    settings = {"cap": cap, "expert": base.expert}
    page, summary = write_lora_delta_report(targets, cap, inputs, settings, out)
    print_table(list(SUMMARY_COLUMNS), summary_rows(targets))
    typer.echo(verdict(targets, cap))
    typer.echo(f"report: {page}")
    emit_json(json_file, {**summary, "report": str(page)})
    over = above(targets, cap) if cap is not None else []
    if over:
        raise CapError(
            f"{len(over)} of {len(targets)} changes are above --cap {cap}, most {over[0].target} with "
            f"{over[0].ratio:.4g}; lower the adapter's strength or train less, see {page}"
        )
