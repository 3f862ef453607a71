"""The verbs of `latentloom store` that change it, and the one that writes Parquet: put, clean, vacuum, export."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.store_options import (
    DEFAULT_WAIT,
    DbOption,
    KindOption,
    WaitOption,
    entry_json,
    entry_table,
    open_store,
    parse_age,
    parse_bytes,
)
from latentloom.errors import ConfigError, FileError
from latentloom.storage.byte_sizes import in_words

if TYPE_CHECKING:
    from latentloom.storage import EmbeddingStore
    from latentloom.storage.embedding_entries import PutResult

PROMPTS_PER_TRANSACTION = 64
DESCRIPTION_LETTERS = 500


def put(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="What `latentloom embed` wrote.")],
    kind: Annotated[
        str | None, typer.Option("--kind", help="How they came about; the file's operation, or encoded, if not given.")
    ] = None,
    dtype: Annotated[
        Literal["float16", "bfloat16", "float32"] | None,
        typer.Option("--dtype", help="To store in; if not given, 16-bit numbers stay and float32 becomes float16."),
    ] = None,
    operands: Annotated[
        bool, typer.Option("--operands", help="Store the operands of results too, and record them as inputs.")
    ] = False,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """Store the embeddings of files; what is there already is not stored twice.

    The operation that made a file is recorded, with its parameters.
    """
    store = open_store(db, wait)
    started = time.perf_counter()
    results: list[PutResult] = []
    for file in files:
        _put_file(store, file, kind, dtype, operands, results)
    seconds = time.perf_counter() - started
    new = [result.entry for result in results if result.is_new]
    known = len(results) - len(new)
    there = f", {known} were there already" if known else ""
    typer.echo(f"{store.path}: {len(new)} new{there}; {in_words(sum(entry.stored_bytes for entry in new))} of tokens")
    for note in sorted({result.note for result in results if result.note}):
        typer.echo(f"{sum(result.note == note for result in results)} {note}")
    rows = [{**entry_json(each.entry), "is_new": each.is_new, "note": each.note} for each in results]
    emit_json(json_file, {"file": str(store.path), "embeddings": rows, "seconds": seconds})


def clean(
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="As in 30d; also s, m, h and w.")
    ] = None,
    accessed_fewer_than: Annotated[
        int | None,
        typer.Option("--accessed-fewer-than", metavar="TIMES", min=0, help="Times that they were read, or put again."),
    ] = None,
    larger_than: Annotated[
        str | None, typer.Option("--larger-than", metavar="SIZE", help="Compressed tokens, as in 1MB.")
    ] = None,
    to_size: Annotated[
        str | None,
        typer.Option("--to-size", metavar="SIZE", help="Oldest first, until all tokens take no more, as in 2GB."),
    ] = None,
    kind: KindOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """Remove embeddings that meet all conditions given; at least one is needed."""
    from rich.console import Console

    if (older_than, accessed_fewer_than, larger_than, to_size, kind) == (None,) * 5:
        options = "--older-than, --accessed-fewer-than, --larger-than, --to-size or --kind"
        raise ConfigError(f"nothing says what to remove; give {options}")
    store = open_store(db, wait)
    result = store.clean(
        older_than=parse_age(older_than, "--older-than"),
        accessed_fewer_than=accessed_fewer_than,
        larger_than=parse_bytes(larger_than, "--larger-than"),
        kind=kind,
        to_bytes=parse_bytes(to_size, "--to-size"),
        dry_run=dry_run,
    )
    if result.removed:
        Console().print(entry_table(result.removed))
    done = "would be removed" if dry_run else "removed; `latentloom store vacuum` gives the space back to the disk"
    typer.echo(f"{len(result.removed)} embeddings, {in_words(result.stored_bytes)} of tokens, {done}")
    removed = [entry_json(entry) for entry in result.removed]
    emit_json(json_file, {"removed": removed, "stored_bytes": result.stored_bytes, "dry_run": dry_run})


def vacuum(db: DbOption = None, wait: WaitOption = DEFAULT_WAIT, json_file: JsonOption = None) -> None:
    """Write the file anew without unused space; needs room on the disk for the copy."""
    from latentloom.runs import track

    store = open_store(db, wait)
    sizes = store.vacuum(track)
    typer.echo(f"{store.path}: {in_words(sizes.before)} before, {in_words(sizes.after)} now")
    emit_json(json_file, {"file": str(store.path), **asdict(sizes)})


def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New, empty, or an earlier export.")],
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Whether embeddings.parquet holds the tokens, decompressed.")
    ] = True,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """Write the six tables as Parquet files, for other tools.

    Tokens are little-endian numbers of the column dtype, num_tokens rows of dim; bfloat16 as its 16 bits.
    """
    open_store(db, wait).export(folder, tokens)
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
    typer.echo(f"{folder}: {', '.join(f'{name} {in_words(size)}' for name, size in sizes.items())}")
    emit_json(json_file, {"folder": str(folder), "bytes": sizes})


def _put_file(
    store: "EmbeddingStore",
    file: Path,
    kind: str | None,
    dtype: Any,
    with_operands: bool,
    done: "list[PutResult]",
) -> list[str]:
    """Ids of the file's embeddings; what became of them, and before them of its operands, is added to `done`."""
    from latentloom.runs import track
    from latentloom.storage import load_object
    from latentloom.storage.modules import read_origin
    from latentloom.tensors import TextEmbeddings

    embeddings = load_object(file, TextEmbeddings)
    record = read_origin(file).record or {}
    encoder, operation = record.get("encoder"), record.get("operation")
    if not isinstance(encoder, str):
        raise FileError(f"{file} does not say which encoder made it; give a file of `latentloom embed`")
    prompts = _prompts(file, record, len(embeddings))
    operands = [_operand_file(file, each) for each in record.get("operands", [])] if with_operands else []
    inputs = [id_ for operand in operands for id_ in _put_file(store, operand, None, dtype, True, done)]
    starts = range(0, len(prompts), PROMPTS_PER_TRANSACTION)
    kind = kind or str(operation or ("delta" if "delta" in record else "encoded"))
    results = []
    for start in track(starts, f"storing {file.name}") if len(starts) > 1 else starts:
        rows = slice(start, start + PROMPTS_PER_TRANSACTION)
        results += store.put_many(embeddings[rows], prompts[rows], encoder, kind, dtype)
    done += results
    ids = [result.id for result in results]
    if operation is not None and any(result.is_new for result in results):
        described = [_described(each) for each in record.get("operands", [])]
        settings = {**record.get("parameters", {}), "operands": described}
        store.record_operation(operation, inputs, settings, ids)
    return ids


def _operand_file(result: Path, operand: dict[str, Any]) -> Path:
    """The file of an operand, if it is still the one that went in."""
    from latentloom.storage.modules import read_origin

    file = Path(operand.get("file", ""))
    if (read_origin(file).record or {}) != {name: value for name, value in operand.items() if name != "file"}:
        raise FileError(f"{file} is no longer the operand that made {result}; leave out --operands")
    return file


def _prompts(file: Path, record: dict[str, Any], num_prompts: int) -> list[str]:
    """The file's prompts; where an operation made it, which one on what."""
    prompts = record.get("prompts")
    if prompts is None and record.get("operation"):
        return [_described(record)] * num_prompts
    if not isinstance(prompts, list) or len(prompts) != num_prompts:
        raise FileError(f"{file} does not say which prompts it holds; give a file of `latentloom embed`")
    return prompts


def _described(record: dict[str, Any]) -> str:
    """A record in words: its prompts, or the operation with its operands' words."""
    if record.get("prompts"):
        text = " | ".join(map(str, record["prompts"]))
    else:
        text = f"{record.get('operation')}({', '.join(_described(each) for each in record.get('operands', []))})"
    return text[:DESCRIPTION_LETTERS]
