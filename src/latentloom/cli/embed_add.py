"""`latentloom embed add`: files of embeddings, weighed and combined."""

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
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

OperationName = Literal["add", "weighted_sum", "multiply", "normalize"]


def command(
    files: Annotated[
        list[Path], typer.Argument(metavar="A B…", help="Embeddings; one prompt serves all of the others'.")
    ],
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="W,W…", help="One number per file, as in 1,0.5; all 1 by default."),
    ] = None,
    operation: Annotated[
        OperationName,
        typer.Option(
            "--operation",
            help="The sum by weight; the mean by weight; the product; the sum brought to a norm of 1 per prompt.",
        ),
    ] = "add",
    align: AlignOption = "pad",
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("sum.safetensors"),
    allow_mixed: MixedOption = False,
    json_file: JsonOption = None,
) -> None:
    """Add embeddings, or take their weighted mean or product; `--weights 1,0.5` adds half of B to A."""
    require_writable(out)
    factors = parse_weights(weights)
    operands = load_operands(files, allow_mixed)
    from latentloom.steering.embeddings import arithmetic

    combine = {
        "add": arithmetic.add,
        "weighted_sum": arithmetic.weighted_sum,
        "multiply": arithmetic.multiply,
        "normalize": arithmetic.normalize,
    }[operation]
    result = combine(*(operand.embeddings for operand in operands), weights=factors, align=align)
    done = Operation(operation, {"weights": factors or [1.0] * len(operands)})
    report = save_result(out, result.embeddings, done, operands, result.alignment)
    apart = [differences(operand.embeddings, result.embeddings) for operand in operands]
    for operand, figures in zip(operands, apart, strict=True):
        typer.echo(f"the result differs from {operand.file} by {span(figures)}")
    emit_json(json_file, {**report, "relative_differences": {"to_operands": apart}})


def parse_weights(text: str | None) -> list[float] | None:
    """The numbers of `1,0.5`.

    Raises:
        ConfigError: a part that is no number.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--weights {text} is not understood; give one number per file, as in 1,0.5") from error
