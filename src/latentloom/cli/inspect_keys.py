"""`latentloom inspect keys PATH`: every tensor by block, and what the files are, from headers alone."""

from pathlib import Path
from typing import Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.tables import print_table


def command(
    path: Annotated[Path, typer.Argument(help="A weight file, or a folder with some at or below it.")],
    out: Annotated[
        Path | None, typer.Option("--out", file_okay=False, help="Folder of the report; reports/keys/RUN by default.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """List keys and shapes by block and tell what they are; whole models, shards, adapters or anything else.

    Prefixes such as model.diffusion_model. are taken off. No weights are read.
    """
    from latentloom.finetune.probes.keys import scan_keys
    from latentloom.finetune.probes.keys_report import GROUP_COLUMNS, group_rows, label, remarks, write_keys_report
    from latentloom.finetune.probes.report import require_report_folder

    require_report_folder(out, "keys")
    groups = scan_keys(path)
    page, summary = write_keys_report(path, groups, out)
    print_table(list(GROUP_COLUMNS), group_rows(groups))
    typer.echo(f"as a checkpoint: {summary['results']['checkpoint']}")
    for group in groups:
        for note in remarks(group):
            typer.echo(f"{label(group)}: {note}")
    typer.echo(f"report: {page}")
    emit_json(json_file, {**summary, "report": str(page)})
