"""`latentloom embed interpolate`: a sequence of prompts from one file's to the next one's."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentloom.cli.embed_operands import (
    AlignOption,
    MixedOption,
    Operation,
    differences,
    load_operands,
    save_result,
    span,
)
from latentloom.cli.options import JsonOption, emit_json
from latentloom.storage import require_writable

Method = Literal["linear", "spherical", "cubic"]


def command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="A B…", help="Embeddings to lead through; one prompt serves all of the others'."),
    ],
    method: Annotated[
        Method, typer.Option("--method", help="A straight line; an arc per token; a curve that rests at both ends.")
    ] = "linear",
    steps: Annotated[int, typer.Option("--steps", help="Prompts in the sequence, 2 to 20.")] = 5,
    endpoints: Annotated[
        bool,
        typer.Option("--endpoints/--no-endpoints", help="Whether the sequence begins with A and ends with the last."),
    ] = True,
    align: AlignOption = "pad",
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path(
        "interpolation.safetensors"
    ),
    allow_mixed: MixedOption = False,
    json_file: JsonOption = None,
) -> None:
    """Lead from A to B in even steps, and on to further files; all steps become the prompts of one file."""
    require_writable(out)
    operands = load_operands(files, allow_mixed)
    from latentloom.steering.embeddings.interpolation import interpolate

    keys = [operand.embeddings for operand in operands]
    result = interpolate(*keys, method=method, steps=steps, endpoints=endpoints, align=align)
    done = Operation("interpolate", {"method": method, "steps": steps, "endpoints": endpoints})
    report = save_result(out, result.embeddings, done, operands, result.alignment)
    sequence = result.embeddings
    apart = [
        differences(sequence[start : start + steps - 1], sequence[start + 1 : start + steps])
        for start in range(0, len(sequence), steps)
    ]
    typer.echo(f"neighbouring steps differ by {span([figure for figures in apart for figure in figures])}")
    emit_json(json_file, {**report, "relative_differences": {"between_steps": apart}})
