"""`latentloom inspect encoder-drift PATH`: whether a tuned text encoder kept its geometry."""

from pathlib import Path
from typing import Annotated, Any

import typer

from latentloom.cli.inspect_options import ReportOption, prompts_for
from latentloom.cli.model import DeviceOption, DtypeOption, checkpoint_or_default, load_text_encoder
from latentloom.cli.options import CkptRootOption, JsonOption, emit_json
from latentloom.cli.prompts import PromptsFileOption
from latentloom.cli.tables import print_table

_NUM_PROMPTS = 24


def command(
    path: Annotated[Path, typer.Argument(help="A tuned encoder's file, or an epoch's folder that holds one.")],
    ckpt_root: CkptRootOption = None,
    prompts_file: PromptsFileOption = None,
    neighbours: Annotated[int, typer.Option("--neighbours", min=1, help="Nearest prompts that a prompt may keep.")] = 5,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    out: ReportOption = None,
    json_file: JsonOption = None,
) -> None:
    """Compare what a tuned text encoder makes of prompts with what its base makes of them.

    The file may hold all of the encoder or only what was trained, in Wan's, Hugging Face's or ComfyUI's keys. The base
    is the encoder of --ckpt-root.
    """
    from latentloom.finetune.encoder_files import encoder_file, load_text_encoder_file
    from latentloom.finetune.probes.report import describe_files, require_report_folder

    require_report_folder(out, "encoder-drift")
    root, file = checkpoint_or_default(ckpt_root), encoder_file(path)
    prompts = prompts_for(root, prompts_file, _NUM_PROMPTS)

    from latentloom.finetune.probes.encoder_drift import encoder_drift
    from latentloom.finetune.probes.encoder_drift_report import (
        SUMMARY_COLUMNS,
        summary_rows,
        verdict,
        write_encoder_drift_report,
    )
    from latentloom.wan.layouts import recognise

    encoder = load_text_encoder(root, device, dtype)
    base = encoder.encode(prompts).to("cpu")
    # the base's own weights make way, so that never two encoders are held
    replaced = load_text_encoder_file(encoder.model, file)
    drift = encoder_drift(base, encoder.encode(prompts).to("cpu"), neighbours)
    inputs: dict[str, Any] = {
        "encoder": describe_files([file]),
        "base": describe_files(recognise(root).component("text_encoder").shards.files, hashed=False),
        "prompts": prompts,
    }
    placement = {"device": str(encoder.model.device), "dtype": str(encoder.model.dtype).removeprefix("torch.")}
    settings = {"neighbours": drift.num_neighbours, "replaced_tensors": len(replaced), **placement}
    page, summary = write_encoder_drift_report(drift, prompts, inputs, settings, out)
    print_table(list(SUMMARY_COLUMNS), summary_rows(drift))
    typer.echo(verdict(drift))
    typer.echo(f"report: {page}")
    emit_json(json_file, {**summary, "report": str(page)})
