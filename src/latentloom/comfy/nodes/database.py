"""The embedding store, looked at and cleaned from a graph."""

from datetime import timedelta

from latentloom.comfy.schema import Node, Output, Shown, Widget
from latentloom.comfy.store import ID_LETTERS, open_store, short_ids
from latentloom.storage import EmbeddingStore
from latentloom.storage.byte_sizes import in_words
from latentloom.storage.embedding_entries import EmbeddingEntry, Operation

ACTIONS = ("stats", "cleanup", "list_recent")
RECENT = 10
SHOWN_IDS = 3


def manage_store(action: str, cleanup_days: int, cleanup_min_access: int) -> Shown:
    """What the store holds, what was removed from it, or what happened last."""
    store = open_store()
    if not store.path.is_file():
        report = f"there is no store yet: {store.path} is made by the first node with store_in_db on"
    elif action == "stats":
        report = _stats(store)
    elif action == "cleanup":
        report = _clean(store, cleanup_days, cleanup_min_access)
    else:
        report = _recent(store)
    return Shown((report,), report)


def every_time(action: str, cleanup_days: int, cleanup_min_access: int) -> float:
    """A value that is never the last one's, as the store changes without the graph."""
    return float("nan")


def _stats(store: EmbeddingStore) -> str:
    stats = store.stats()
    size = in_words(stats.file_bytes)
    lines = [f"{store.path}: {stats.num_embeddings} embeddings, {stats.num_tokens} tokens, {size} on disk"]
    if stats.ratio_to_padded is not None and stats.ratio_to_true is not None:
        lines += [
            f"  tokens compressed to {in_words(stats.stored_bytes)}: {stats.ratio_to_padded:.1f} times smaller than "
            f"padded float32, {stats.ratio_to_true:.2f} times smaller than the true tokens in 16 bits",
            f"  cached: {stats.num_analyses} analyses, {stats.num_similarities} similarities",
        ]
    lines += [
        f"  {group.num_embeddings:6} {group.kind}, {group.encoder}, {group.dtype}, {in_words(group.stored_bytes)}"
        for group in stats.groups
    ]
    if stats.operations:
        lines.append("operations")
    lines += [
        f"  {total.num_operations:6} {total.kind}, {1000 * total.seconds / total.num_operations:.1f} ms each on average"
        for total in stats.operations
    ]
    return "\n".join(lines)


def _clean(store: EmbeddingStore, days: int, min_access: int) -> str:
    result = store.clean(older_than=timedelta(days=days), accessed_fewer_than=min_access)
    rule = f"older than {days} days and used fewer than {min_access} times"
    if not result.removed:
        return f"{store.path}: nothing is {rule}; nothing was removed"
    lines = [
        f"{store.path}: {len(result.removed)} embeddings removed ({rule}), {in_words(result.stored_bytes)} of tokens",
        *(f"  {_entry(entry)}" for entry in result.removed[:RECENT]),
    ]
    if len(result.removed) > RECENT:
        lines.append(f"  and {len(result.removed) - RECENT} more")
    lines.append("the record of operations stays; `latentloom store vacuum` gives the room back to the disk")
    return "\n".join(lines)


def _recent(store: EmbeddingStore) -> str:
    entries, operations = store.entries(limit=RECENT), store.operations(limit=RECENT)
    lines = [f"{store.path}: the last {len(entries)} embeddings, newest first"]
    lines += [f"  {_entry(entry)}" for entry in entries]
    lines.append(f"the last {len(operations)} operations, newest first" if operations else "no operation is recorded")
    lines += [f"  {_operation(operation)}" for operation in operations]
    return "\n".join(lines)


def _entry(entry: EmbeddingEntry) -> str:
    prompt = f" {' '.join(entry.prompt.split())[:60]}" if entry.prompt else ""
    return (
        f"{entry.id[:ID_LETTERS]} {entry.created:%Y-%m-%d %H:%M} {entry.kind:<12} {entry.num_tokens:4} x {entry.dim} "
        f"{entry.encoder} used {entry.num_accesses} times{prompt}"
    )


def _operation(operation: Operation) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in operation.parameters.items())
    made = short_ids(operation.outputs[:SHOWN_IDS])
    more = f" and {len(operation.outputs) - SHOWN_IDS} more" if len(operation.outputs) > SHOWN_IDS else ""
    return (
        f"{operation.number} {operation.created:%Y-%m-%d %H:%M} {operation.kind}({short_ids(operation.inputs)}) -> "
        f"{made}{more}; {settings}; {1000 * operation.seconds:.1f} ms"
    )


DATABASE = Node(
    id="WanVideoEmbeddingDatabase",
    name="Embedding Database",
    topic="Embeddings",
    description="Shows what the embedding store holds and what happened last, or removes what is old and hardly used.",
    inputs=(
        Widget("action", "stats", "What to do; runs each time the graph is queued.", options=ACTIONS),
        Widget("cleanup_days", 30, "Cleanup removes what is older than so many days.", low=1, high=365),
        Widget("cleanup_min_access", 5, "Cleanup keeps what was used at least so many times.", low=1, high=100),
    ),
    outputs=(Output("report", "STRING", "The report as text."),),
    run=manage_store,
    fingerprint=every_time,
    shows=True,
    help="""
Needs no link and changes no clip. The store is the file in `$LATENTLOOM_STORE`, else `latentloom/embeddings.duckdb` in
ComfyUI's user folder; the Embedding Analyzer and the arithmetic nodes write to it where their `store_in_db` is on.
Other programs, such as the command `latentloom store`, may use it at the same time: each waits for its turn.

- `stats`: how much is stored, how well it is compressed, how long operations took on average.
- `list_recent`: the last ten embeddings and operations.
- `cleanup`: removes, without asking, every embedding that is **both** older than `cleanup_days` **and** used fewer than
  `cleanup_min_access` times. A use is a reading of the embedding or putting the same content again. Set the action
  back to `stats` afterwards: it runs each time the graph is queued.
""",
)

NODES: tuple[Node, ...] = (DATABASE,)
