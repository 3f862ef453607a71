"""What the commands that use a trained bridge share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.errors import ShapeError

if TYPE_CHECKING:
    from latentloom.bridge.model import LatentBridge
    from latentloom.bridge.sentence_encoders import SentenceEncoder
    from latentloom.tensors import SentenceVector

DEFAULT_ENCODER = "minilm"

BridgeOption = Annotated[
    Path, typer.Option("--bridge", metavar="RUN|FILE", help="The folder of a run, or a checkpoint_step_<N> of one.")
]
BackboneDtypeOption = Annotated[
    Literal["bf16", "fp16", "fp32"], typer.Option("--dtype", help="Precision of the backbone's weights.")
]
LocalDirOption = Annotated[
    Path | None,
    typer.Option("--local-dir", file_okay=False, help="Folder of the backbone's files, if not where its name says."),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        metavar="NAME",
        help="Makes vectors of texts: minilm, or the folder of a sentence-transformers model.",
    ),
]
NewTokensOption = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest text, in tokens.")]
TopPOption = Annotated[
    float | None,
    typer.Option("--top-p", min=0.01, max=1, help="Draw from the fewest tokens that hold this share (0.95)."),
]
TemperatureOption = Annotated[
    float | None, typer.Option("--temperature", min=0.01, help="Of drawn tokens; lower is safer (0.7).")
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of drawn tokens (0).")]


def embed_texts(encoder: "SentenceEncoder", texts: Sequence[str], bridge: "LatentBridge") -> "SentenceVector":
    """Vectors of texts, of the width that the bridge was trained on.

    Raises:
        ShapeError: the encoder's are of another width.
    """
    if encoder.dim != bridge.latent_dim:
        raise ShapeError(
            f"{encoder.name} makes vectors of {encoder.dim} channels, and this bridge was trained on "
            f"{bridge.latent_dim}; give --encoder the one that made its training vectors"
        )
    return encoder.encode(texts)


def require_width(vectors: "SentenceVector", bridge: "LatentBridge", source: Path) -> None:
    """Return if the bridge takes vectors of that width.

    Raises:
        ShapeError: it does not.
    """
    if vectors.dim != bridge.latent_dim:
        raise ShapeError(
            f"{source} holds vectors of {vectors.dim} channels, and this bridge was trained on {bridge.latent_dim}; "
            "give vectors of the encoder that it was trained with"
        )


def print_texts(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table of texts, each as it is: brackets are no markup, and long ones go on in the next line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None)
    for name in columns:
        table.add_column(name, justify="left" if name in ("text", "made from") else "right", vertical="top")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    # Off a terminal rich assumes 80 columns, which would break texts that a pipe could take whole.
    console.print(table) if console.is_terminal else Console(width=240).print(table)
