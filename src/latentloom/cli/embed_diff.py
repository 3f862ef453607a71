"""`latentloom embed diff`: what one file of embeddings has and another lacks."""

from pathlib import Path
from typing import Annotated

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


def command(
    first: Annotated[Path, typer.Argument(metavar="A", help="Embeddings from `latentloom embed`.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What is subtracted; one prompt serves all of A's.")],
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Bring each prompt's difference to a norm of 1.")
    ] = False,
    scale: Annotated[float, typer.Option("--scale", help="Factor on the result, after normalising.")] = 1.0,
    align: AlignOption = "pad",
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("difference.safetensors"),
    allow_mixed: MixedOption = False,
    json_file: JsonOption = None,
) -> None:
    """Subtract B from A, prompt by prompt: the style or the concept that A has and B lacks."""
    require_writable(out)
    operands = load_operands([first, second], allow_mixed)
    from latentloom.steering.embeddings.arithmetic import difference

    a, b = (operand.embeddings for operand in operands)
    result = difference(a, b, normalize, scale, align)
    operation = Operation("difference", {"normalize": normalize, "scale": scale})
    report = save_result(out, result.embeddings, operation, operands, result.alignment)
    apart = differences(a, b)
    norms = [span(norms) for norms in (report["norms"], *(each["norms"] for each in report["operands"]))]
    typer.echo(f"A and B differ by {span(apart)}; norm of the result {norms[0]}, of A {norms[1]}, of B {norms[2]}")
    emit_json(json_file, {**report, "relative_differences": {"between_operands": apart}})
