"""What the verbs of `latentloom embed` share: files in, a file with its provenance out, and what is reported."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from latentloom.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from latentloom.steering.embeddings.alignment import Alignment
    from latentloom.tensors import TextEmbeddings

AlignOption = Annotated[
    Literal["pad", "truncate"],
    typer.Option("--align", help="Different lengths: zeros up to the longest, or a cut to the shortest."),
]
MixedOption = Annotated[
    bool, typer.Option("--allow-mixed-encoders", help="Let files of different text encoders be operands of one result.")
]


class StoredOperand(NamedTuple):
    """One file of embeddings: its content, and how that came about."""

    file: Path
    embeddings: "TextEmbeddings"
    record: dict[str, Any]


class Operation(NamedTuple):
    """What was done, under the library's own names."""

    name: str
    parameters: dict[str, Any]


def load_operands(files: Sequence[Path], allow_mixed: bool) -> list[StoredOperand]:
    """The operands, each fit to compute with, all of one text encoder.

    Args:
        files: what `latentloom embed` wrote.
        allow_mixed: take embeddings of different encoders too, as long as their widths agree.

    Raises:
        FileError: a file that is missing, damaged or of another kind.
        ShapeError, ConfigError: no tokens, values that are not finite, or two encoders.
    """
    from latentloom.steering.embeddings.alignment import require_usable
    from latentloom.storage import load_object
    from latentloom.storage.modules import read_origin
    from latentloom.tensors import TextEmbeddings

    operands = []
    for file in files:
        embeddings = load_object(file, TextEmbeddings)
        require_usable(embeddings, str(file))
        operands.append(StoredOperand(file, embeddings, read_origin(file).record or {}))
    known = [operand for operand in operands if operand.record.get("encoder")]
    for operand in known[1:]:
        if operand.record["encoder"] != known[0].record["encoder"] and not allow_mixed:
            raise ConfigError(
                f"{known[0].file} is of encoder {known[0].record['encoder']} and {operand.file} of "
                f"{operand.record['encoder']}; encode both with one, or add --allow-mixed-encoders"
            )
    return operands


def save_result(
    out: Path,
    result: "TextEmbeddings",
    operation: Operation,
    operands: Sequence[StoredOperand],
    alignment: "Alignment",
) -> dict[str, Any]:
    """Write a result with its provenance, say so, and return what `--json` starts with.

    The record nests: an operand that was itself a result keeps its own operands.
    """
    from latentloom.steering.embeddings.arithmetic import prompt_norms
    from latentloom.storage import save_object

    encoders = sorted({str(operand.record["encoder"]) for operand in operands if operand.record.get("encoder")})
    made = {
        "operation": operation.name,
        "parameters": operation.parameters,
        "alignment": {"method": alignment.method, "before": alignment.before, "after": alignment.after},
        "encoder": "+".join(encoders) or None,
        "dtype": str(result.dtype).removeprefix("torch."),
    }
    provenance = [{"file": str(operand.file), **operand.record} for operand in operands]
    save_object(out, result, {**made, "operands": provenance})
    prompts = "1 prompt" if len(result) == 1 else f"{len(result)} prompts"
    typer.echo(f"{out}: {prompts}, {len(result.tokens)} tokens of {result.dim} channels; {alignment}")
    measured = [
        {
            "file": str(operand.file),
            "lengths": operand.embeddings.lengths.tolist(),
            "norms": prompt_norms(operand.embeddings).tolist(),
        }
        for operand in operands
    ]
    return {
        "file": str(out),
        **made,
        "lengths": result.lengths.tolist(),
        "dim": result.dim,
        "norms": prompt_norms(result).tolist(),
        "operands": measured,
    }


def differences(first: "TextEmbeddings", second: "TextEmbeddings") -> list[float]:
    """Relative difference of each pair of prompts; one prompt serves all of the other side."""
    from latentloom.steering.embeddings.alignment import match_prompts
    from latentloom.steering.embeddings.difference import relative_difference

    return relative_difference(*match_prompts([first, second])).tolist()


def span(values: "Sequence[float] | Tensor") -> str:
    """One figure, or the smallest and the largest of several."""
    numbers = [float(value) for value in values]
    low, high = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
    return low if low == high else f"{low} to {high}"
