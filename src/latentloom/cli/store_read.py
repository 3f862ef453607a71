"""The verbs of `latentloom store` that ask: stats, list, show, search, get, operations."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentloom.cli.options import JsonOption, emit_json
from latentloom.cli.store_options import (
    DEFAULT_WAIT,
    ID_LETTERS,
    DbOption,
    IdArgument,
    KindOption,
    WaitOption,
    entry_json,
    entry_table,
    open_store,
    parse_age,
)
from latentloom.errors import ConfigError, ShapeError
from latentloom.storage import require_writable
from latentloom.storage.byte_sizes import in_words

if TYPE_CHECKING:
    from latentloom.storage import EmbeddingStore
    from latentloom.storage.embedding_entries import SearchResult, StoreStats

RATIOS = ("ratio_to_padded", "ratio_to_true", "file_ratio_to_padded", "file_ratio_to_true")


def stats(db: DbOption = None, wait: WaitOption = DEFAULT_WAIT, json_file: JsonOption = None) -> None:
    """Count what is stored, per encoder and kind, and what it would take otherwise.

    Two ratios: to padded float32 tensors of 512 tokens, as hosts hand them around, most of which is padding left out;
    and to the true tokens in 16 bits, which is what compression saves.
    """
    store = open_store(db, wait)
    found = store.stats()
    _print_stats(store.path, found)
    emit_json(
        json_file,
        {"file": str(store.path), **asdict(found), **{name: getattr(found, name) for name in RATIOS}},
    )


def list_(
    kind: KindOption = None,
    encoder: Annotated[str | None, typer.Option("--encoder", help="Only of this encoder's fingerprint.")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Only with these words in the prompt.")] = None,
    older_than: Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="As in 30d.")] = None,
    newer_than: Annotated[str | None, typer.Option("--newer-than", metavar="AGE", help="As in 12h.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="At most so many.")] = None,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """List what is stored, newest first."""
    from rich.console import Console

    store = open_store(db, wait)
    entries = store.entries(
        kind=kind,
        encoder=encoder,
        prompt=prompt,
        older_than=parse_age(older_than, "--older-than"),
        newer_than=parse_age(newer_than, "--newer-than"),
        limit=limit,
    )
    Console().print(entry_table(entries) if entries else f"no such embeddings in {store.path}", soft_wrap=not entries)
    emit_json(json_file, {"embeddings": [entry_json(entry) for entry in entries]})


def show(
    embedding_id: IdArgument, db: DbOption = None, wait: WaitOption = DEFAULT_WAIT, json_file: JsonOption = None
) -> None:
    """Show one embedding: where it comes from, norms, spread and effective dimensions of its tokens."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    store = open_store(db, wait)
    entry = store.find(embedding_id)
    shown = {**entry_json(entry), "analysis": asdict(store.analyze(entry.id))}
    table = Table("field", "value", box=None)
    for field, value in {**shown, **shown["analysis"]}.items():
        if field != "analysis":
            table.add_row(field, Text(f"{value:.5g}" if isinstance(value, float) else str(value)))
    Console().print(table)
    emit_json(json_file, shown)


def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="An id, or a file of `latentloom embed`.")],
    k: Annotated[int, typer.Option("--k", min=1, help="How many.")] = 10,
    row: Annotated[int, typer.Option("--row", min=0, help="Which prompt of a file, counted from 0.")] = 0,
    any_encoder: Annotated[
        bool, typer.Option("--any-encoder", help="Compare embeddings of other encoders too, if they are as wide.")
    ] = False,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """Find the nearest embeddings, by the cosine of their mean tokens."""
    from rich.console import Console

    store = open_store(db, wait)
    result = _search(store, query, k, row, any_encoder)
    cosines = [f"{match.cosine:.4f}" for match in result.matches]
    Console().print(entry_table([match.entry for match in result.matches], cosine=cosines))
    typer.echo(f"{result.num_compared} compared" + (" in an earlier search" if result.cached else ""))
    matches = [{"cosine": match.cosine, **entry_json(match.entry)} for match in result.matches]
    emit_json(json_file, {"matches": matches, "num_compared": result.num_compared, "cached": result.cached})


def get(
    embedding_ids: Annotated[list[str], typer.Argument(metavar="ID…", help="As `latentloom store list` prints them.")],
    out: Annotated[Path, typer.Option("--out", help="The safetensors file to write.")] = Path("embeddings.safetensors"),
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """Write embeddings to a file, bit for bit; `latentloom generate --embeddings` takes it in place of prompts."""
    require_writable(out)
    stored = open_store(db, wait).get_many(embedding_ids)
    from latentloom.storage import save_object
    from latentloom.tensors import TextEmbeddings

    entries = [item.entry for item in stored]
    for name in ("encoder", "dtype", "dim"):
        values = sorted({str(getattr(entry, name)) for entry in entries})
        if len(values) > 1:
            raise ConfigError(f"these embeddings differ in {name} ({', '.join(values)}); get them one file each")
    record = {
        "prompts": [entry.prompt for entry in entries],
        "encoder": entries[0].encoder,
        "dtype": entries[0].dtype,
        "ids": [entry.id for entry in entries],
        "kinds": [entry.kind for entry in entries],
    }
    joined = TextEmbeddings.cat([item.embeddings for item in stored])
    save_object(out, joined, record)
    typer.echo(f"{out}: {len(joined)} prompts, {len(joined.tokens)} tokens of {joined.dim} channels")
    emit_json(json_file, {"file": str(out), **record, "lengths": joined.lengths.tolist(), "dim": joined.dim})


def operations(
    kind: KindOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    db: DbOption = None,
    wait: WaitOption = DEFAULT_WAIT,
    json_file: JsonOption = None,
) -> None:
    """List the last recorded operations, newest first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    done = open_store(db, wait).operations(limit, kind)
    table = Table("number", "kind", box=None)
    for name in ("inputs", "outputs"):
        table.add_column(name, no_wrap=True, min_width=ID_LETTERS)
    for name in ("seconds", "created (UTC)", "parameters"):
        table.add_column(name)
    for each in done:
        ids = ["\n".join(name[:ID_LETTERS] for name in names) for names in (each.inputs, each.outputs)]
        settings = "\n".join(f"{name}={value}" for name, value in each.parameters.items())
        cells = [str(each.number), each.kind, *ids, f"{each.seconds:.3g}", f"{each.created:%y-%m-%d %H:%M}", settings]
        table.add_row(*map(Text, cells))
    Console().print(table if done else "no operations recorded")
    emit_json(json_file, {"operations": [asdict(each) for each in done]})


def _search(store: "EmbeddingStore", query: str, k: int, row: int, any_encoder: bool) -> "SearchResult":
    if not Path(query).is_file():
        return store.search(query, k, any_encoder=any_encoder)
    from latentloom.storage import load_object
    from latentloom.storage.modules import read_origin
    from latentloom.tensors import TextEmbeddings

    embeddings = load_object(query, TextEmbeddings)
    if row >= len(embeddings):
        raise ShapeError(f"{query} has {len(embeddings)} prompts, counted from 0; --row {row} is none of them")
    encoder = (read_origin(query).record or {}).get("encoder")
    if not isinstance(encoder, str) and not any_encoder:
        raise ConfigError(f"{query} does not say which encoder made it; add --any-encoder to compare it with all")
    return store.search(embeddings[row], k, encoder=encoder, any_encoder=any_encoder)


def _print_stats(path: Path, found: "StoreStats") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    say(f"{path}: {found.num_embeddings} embeddings, {found.num_tokens} tokens, {in_words(found.file_bytes)}")
    if found.num_embeddings:
        stored = in_words(found.stored_bytes)
        say(f"tokens: {stored}; {_ratio(found.ratio_to_padded)} smaller than [512, D] in float32 with its padding")
        say(f"        {_ratio(found.ratio_to_true)} smaller than the true tokens in 16 bits: compression alone")
        say(
            f"file:   {_ratio(found.file_ratio_to_padded)} and {_ratio(found.file_ratio_to_true)}; it also holds mean "
            "vectors, tables and what `latentloom store vacuum` would free"
        )
        table = Table("encoder", "kind", "dtype", "width", "embeddings", "tokens", "bytes", "padded", "true", box=None)
        for group in found.groups:
            cells = [group.encoder, group.kind, group.dtype, *map(str, (group.dim, group.num_embeddings))]
            cells += [str(group.num_tokens), in_words(group.stored_bytes)]
            cells += [_ratio(size / max(group.stored_bytes, 1)) for size in (group.padded_bytes, group.true_bytes)]
            table.add_row(*map(Text, cells))
        console.print(table)
    say(f"cached: {found.num_analyses} analyses, {found.num_similarities} similarities")
    for total in found.operations:
        say(f"operation {total.kind}: {total.num_operations} times, {total.seconds:.3g} s together")


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"
