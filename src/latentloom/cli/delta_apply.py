"""`latentloom delta apply`: a file of embeddings in, the adjusted file out; and adapters for other commands."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.errors import ConfigError
from latentloom.storage import require_writable

if TYPE_CHECKING:
    from latentloom.tensors import TextEmbeddings

DeltaOption = Annotated[
    list[Path] | None,
    typer.Option("--delta", metavar="FILE", help="An Embedding Delta adapter; several act under one joint cap."),
]
DeltaStrengthOption = Annotated[
    list[float] | None,
    typer.Option("--delta-strength", help="1 is as trained, 0 is off; given once for all, or once per --delta."),
]


def command(
    embeddings: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="From `latentloom embed`.")],
    adapter: Annotated[list[Path], typer.Option("--adapter", metavar="FILE", help="The adapter; may be repeated.")],
    strength: Annotated[
        list[float] | None, typer.Option("--strength", help="1 is as trained; once for all, or once per adapter.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("adjusted.safetensors"),
    json_file: JsonOption = None,
) -> None:
    """Adjust a file of text embeddings; `latentloom generate --embeddings` takes the result."""
    require_writable(out)
    strengths = one_strength_each(adapter, strength)
    from latentloom.storage import load_object, save_object
    from latentloom.storage.modules import read_origin
    from latentloom.tensors import TextEmbeddings

    before = load_object(embeddings, TextEmbeddings)
    after = adjust(before, adapter, strengths)
    applied = [{"file": str(file), "strength": value} for file, value in zip(adapter, strengths, strict=True)]
    save_object(out, after, {**(read_origin(embeddings).record or {}), "delta": applied})
    tokens = before.tokens.float()
    shares = (after.tokens.float() - tokens).norm(dim=1) / tokens.norm(dim=1).clamp_min(1e-30)
    moved = shares.mean().item() if len(shares) else 0.0
    typer.echo(f"{out}: {len(after)} prompts; tokens moved by {100 * moved:.1f} % of their length on average")
    emit_json(json_file, {"file": str(out), "num_prompts": len(after), "mean_relative_change": moved, "delta": applied})


def one_strength_each(adapters: list[Path], strengths: list[float] | None, option: str = "--delta") -> list[float]:
    """A finite strength per adapter; a single one serves all.

    Args:
        adapters: their files.
        strengths: as given.
        option: what gives an adapter on the command line; its strength is `OPTION-strength`.

    Raises:
        ConfigError: another number of strengths, one that is not finite, or strengths of no adapter.
    """
    strengths = strengths or []
    if strengths and not adapters:
        raise ConfigError(f"{option}-strength was given without {option}; give the adapter's file too, or drop it")
    if not all(math.isfinite(strength) for strength in strengths):
        raise ConfigError(f"strengths {strengths}; give finite numbers, 1 is as trained")
    if len(strengths) < 2:
        return (strengths or [1.0]) * len(adapters)
    if len(strengths) != len(adapters):
        raise ConfigError(f"{len(strengths)} strengths for {len(adapters)} adapters; give one for all, or one each")
    return strengths


def adjust(embeddings: "TextEmbeddings", adapters: list[Path], strengths: list[float]) -> "TextEmbeddings":
    """The embeddings after the adapters of these files, on the embeddings' device."""
    from latentloom.delta.files import load_embdelta_adapter
    from latentloom.delta.model import apply_deltas

    loaded = [load_embdelta_adapter(file, embeddings.dim, embeddings.device) for file in adapters]
    return apply_deltas(embeddings, loaded, strengths)
