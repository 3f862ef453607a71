"""What the commands that use a trained bridge share."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.errors import ConfigError, ShapeError

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
        help="Makes vectors of texts: minilm, or the folder of a sentence-transformers model; the one that made the "
        "training vectors by default.",
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


def load_vector_encoder(bridge: "LatentBridge", name: str | None, device: str | None) -> "SentenceEncoder":
    """The encoder asked for, or else the one that made the bridge's training vectors; a line warns of another one.

    Raises:
        ConfigError: it was not asked for, and is not on this machine.
        FileError: the one that was asked for is not.
    """
    from latentloom.bridge.sentence_encoders import is_encoder_here, load_sentence_encoder

    stated = bridge.vector_encoder
    if name is None and stated is None:
        typer.echo(f"this bridge does not say which encoder made its vectors; {DEFAULT_ENCODER} is taken", err=True)
        name = DEFAULT_ENCODER
    if name is None and stated is not None:
        name = stated.source
        if name is None or not is_encoder_here(name):
            place = "here" if name is None else f"at {name}"
            raise ConfigError(
                f"the vectors of this bridge were made by {stated.name}, which is not {place}; give its folder as "
                "--encoder"
            )
    encoder = load_sentence_encoder(name or DEFAULT_ENCODER, device)
    is_other = stated is not None and stated.fingerprint not in (None, encoder.fingerprint)
    if stated is not None and is_other and encoder.dim == bridge.latent_dim:  # another width is refused
        typer.echo(
            f"warning: this bridge was trained on vectors of {stated.name} {stated.fingerprint}, and {encoder.name} "
            f"{encoder.fingerprint} is another encoder, whose vectors mean something else to it",
            err=True,
        )
    return encoder


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
