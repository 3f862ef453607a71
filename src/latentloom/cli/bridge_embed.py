"""`latentloom bridge embed`: a set of texts and vectors out of a file of texts."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from latentloom.bridge.offline import offline_environment
from latentloom.cli.model import DeviceOption
from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.stopwatch import Stopwatch
from latentloom.errors import ConfigError, FileError

ROWS_PER_SHARD = 10_000


def command(
    texts: Annotated[Path, typer.Argument(metavar="FILE", help="A text file with one text a line, or JSONL.")],
    out: Annotated[Path, typer.Option("--out", file_okay=False, help="A new folder for the pairs.")],
    encoder: Annotated[
        str, typer.Option("--encoder", help="minilm, the embedded one, or the folder of a sentence-transformers model.")
    ] = "minilm",
    role: Annotated[
        Literal["passage", "query"],
        typer.Option("--role", help="What the texts are to encoders that tell the two apart, such as E5."),
    ] = "passage",
    format_name: Annotated[
        Literal["json", "jsonl", "safetensors", "webdataset"],
        typer.Option("--format", help="json as in the document, one file of all, or shards for large sets."),
    ] = "json",
    text_field: Annotated[
        str | None, typer.Option("--text-field", help="Of a JSONL line, the field that holds the text (text).")
    ] = None,
    num: Annotated[
        int | None, typer.Option("--num", min=1, help="Texts to take at most, drawn by the seed; all by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of that draw; 0 when not given.")
    ] = None,
    rows_per_shard: Annotated[
        int | None, typer.Option("--rows-per-shard", min=1, help=f"Pairs of a shard ({ROWS_PER_SHARD}).")
    ] = None,
    device: DeviceOption = None,
    json_file: JsonOption = None,
) -> None:
    """Make vectors of texts, and write both as pairs.

    `latentloom bridge train` reads them as data.train_json.
    """
    offline_environment()
    if out.exists() and any(out.iterdir()):
        raise FileError(f"{out} is not empty; give a new folder to --out")
    if seed is not None and num is None:
        raise ConfigError("--seed chooses among the texts, but all are taken; give --num too, or leave out --seed")
    if rows_per_shard is not None and format_name in ("json", "jsonl"):
        raise ConfigError(f"--rows-per-shard has no effect with --format {format_name}; leave it out")
    clock = Stopwatch()
    with clock.time("load"):
        from latentloom.bridge.embed import JSONL_SUFFIXES, texts_of, write_embedded
        from latentloom.bridge.sentence_encoders import load_sentence_encoder

        if text_field is not None and texts.suffix not in JSONL_SUFFIXES:
            raise ConfigError(f"--text-field has no effect on {texts}, which is no JSONL; leave it out")
        found = texts_of(texts, text_field or "text", num, seed or 0)
        model = load_sentence_encoder(encoder, device)
    with clock.time("encode"):
        write_embedded(
            out, found, model, role=role, format_name=format_name, rows_per_shard=rows_per_shard or ROWS_PER_SHARD
        )
    typer.echo(f"{out}: {len(found)} texts with vectors of {model.dim} channels by {model.name}, as {format_name}")
    about = {"folder": str(out), "format": format_name, "num_pairs": len(found), "role": role}
    emit_json(
        json_file,
        {**about, "encoder": model.name, "fingerprint": model.fingerprint, "dim": model.dim, "seconds": clock.seconds},
    )
