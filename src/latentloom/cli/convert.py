"""`latentloom convert SRC DST --layout official|diffusers|comfy`: a checkpoint in another layout, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.errors import CheckpointError

if TYPE_CHECKING:
    from latentloom.wan.layouts import Checkpoint


class TargetLayout(StrEnum):
    official = "official"
    diffusers = "diffusers"
    comfy = "comfy"


class Expert(StrEnum):
    high = "high"
    low = "low"


def command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A checkpoint in any layout.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    layout: Annotated[TargetLayout, typer.Option(help="The layout of the new checkpoint.")],
    expert: Annotated[
        Expert | None,
        typer.Option(help="Of a pair of experts, convert only this one; of a single file, which one it is."),
    ] = None,
    ckpt_root: Annotated[
        Path | None,
        typer.Option(help="For a trained text encoder: the checkpoint it comes from, for tokenizer and config."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the checkpoint at DST.")] = False,
) -> None:
    """Rewrite a checkpoint in another layout; names change, values, types and shapes do not."""
    with whole_encoder(source, target, ckpt_root) as whole:
        written = convert_with_progress(whole, target, layout, expert, ckpt_root, overwrite)
    models = ", ".join(part.title for part in written.components)
    typer.echo(f"{target}: {models} in the {layout.value} layout")
    if layout is TargetLayout.comfy and lacks_sentence_piece(written):
        typer.echo(
            "the text encoder has no SentencePiece model, which ComfyUI's loader needs; "
            "give --ckpt-root with a checkpoint that has spiece.model"
        )


def convert_with_progress(
    source: Path, target: Path, layout: TargetLayout, expert: Expert | None, lender: Path | None, overwrite: bool
) -> Checkpoint:
    """`wan.convert.convert` under a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from latentloom.wan.convert import convert
    from latentloom.wan.layouts import recognise

    found = recognise(source)
    total = sum(tensor.num_bytes for part in found.components for tensor in part.stored.values())
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("converting", total=total)
        return convert(
            source,
            target,
            layout.value,
            expert=expert.value if expert else None,
            lender=lender,
            overwrite=overwrite,
            on_bytes=lambda num_bytes: progress.advance(task, num_bytes),
        )


@contextmanager
def whole_encoder(source: Path, target: Path, ckpt_root: Path | None) -> Iterator[Path]:
    """The source itself, or where training saved a part of an encoder, a file beside the target with the rest too.

    Raises:
        CheckpointError: there is only a part and no checkpoint to take the rest from.
    """
    from latentloom.finetune.encoder_files import complete_text_encoder, is_partial

    if not source.is_file() or not is_partial(source):
        yield source
        return
    if ckpt_root is None:
        raise CheckpointError(
            f"{source} holds only the tensors that were trained; give --ckpt-root with the checkpoint it comes from"
        )
    folder = next(parent for parent in target.absolute().parents if parent.is_dir())
    with TemporaryDirectory(dir=folder, prefix=".encoder-") as temporary:
        whole = Path(temporary) / source.name
        complete_text_encoder(source, ckpt_root, whole)
        yield whole


def lacks_sentence_piece(written: Checkpoint) -> bool:
    """Whether a ComfyUI text encoder came out without the tensor that holds its tokenizer."""
    from latentloom.wan.layouts import SPIECE_KEY

    encoders = [part for part in written.components if part.role == "text_encoder"]
    return any(part.prefix + SPIECE_KEY not in part.shards.tensors for part in encoders)
