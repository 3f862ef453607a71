"""What each of the embedding store's DuckDB settings buys: bytes written and read per byte stored, and file size.

Each line changes one setting back to DuckDB's default. Bytes are those of this process's system calls (Linux), which
other work on the machine does not change as it changes seconds.
Run: .venv/bin/python benchmarks/bench_embedding_settings.py > benchmarks/results/embedding_settings.txt
"""

import random
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch

from latentloom.runs import track
from latentloom.storage import EmbeddingStore, embedding_schema
from latentloom.storage.embedding_schema import SETTINGS, TABLES
from latentloom.tensors import TextEmbeddings

WIDTH, LENGTH = 4096, 260
NUM_BATCHES, BATCH = 12, 16
NUM_READ, NUM_SMALL = 12, 20


def main() -> None:
    plain_columns = {name: sql.replace("USING COMPRESSION UNCOMPRESSED", "") for name, sql in TABLES.items()}
    ways = {
        "the store's settings": [],
        "max_vacuum_tasks 100": [mock.patch.dict(SETTINGS, {"max_vacuum_tasks": 100})],
        "checkpoint_threshold 16 MB": [mock.patch.dict(SETTINGS, {"checkpoint_threshold": "16MB"})],
        "columns compressed by DuckDB": [mock.patch.dict(TABLES, plain_columns)],
        "blocks of 256 KB": [mock.patch.object(embedding_schema, "BLOCK_BYTES", 2**18)],
    }
    print(f"{NUM_BATCHES} transactions of {BATCH} embeddings of {LENGTH} x {WIDTH}, float16, normal numbers;")
    print("written and read: bytes by byte of compressed tokens; small: KB of file for one of 5 x 128 put by itself")
    print(f"{'':30} {'written':>8} {'in last':>8} {'first s':>8} {'last s':>8} {'read':>6} {'file':>6} {'small':>6}")
    for name, patches in ways.items():
        with ExitStack() as stack, tempfile.TemporaryDirectory(dir=".") as folder:
            for patch in patches:
                stack.enter_context(patch)
            print(f"{name:30} {measure(Path(folder), name)}", flush=True)


def measure(folder: Path, name: str) -> str:
    store = EmbeddingStore(folder / "embeddings.duckdb")
    generator = torch.Generator().manual_seed(0)
    ids, written, seconds = [], [], []
    for batch in track(NUM_BATCHES, name):
        tokens = torch.randn(BATCH * LENGTH, WIDTH, generator=generator).half()
        prompts = TextEmbeddings(tokens, torch.full((BATCH,), LENGTH))
        before, started = system_bytes("wchar"), time.perf_counter()
        ids += [result.id for result in store.put_many(prompts, [f"{batch} {n}" for n in range(BATCH)], "benchmark")]
        seconds.append(time.perf_counter() - started)
        written.append(system_bytes("wchar") - before)
    stats = store.stats()
    each = stats.stored_bytes / len(ids)
    before = system_bytes("rchar")
    for embedding_id in random.Random(0).sample(ids, NUM_READ):
        store.get(embedding_id)
    read = system_bytes("rchar") - before
    for number in range(NUM_SMALL):
        store.put(TextEmbeddings.from_list([torch.randn(5, 128, generator=generator).half()]), f"{number}", "small")
    small = (store.stats().file_bytes - stats.file_bytes) / NUM_SMALL / 1024
    return (
        f"{sum(written) / stats.stored_bytes:8.2f} {written[-1] / (BATCH * each):8.2f} {seconds[0]:8.2f} "
        f"{seconds[-1]:8.2f} {read / (NUM_READ * each):6.2f} {stats.file_bytes / stats.stored_bytes:6.2f} {small:6.0f}"
    )


def system_bytes(name: str) -> int:
    """Bytes that this process has handed to read or write calls so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines[name])


if __name__ == "__main__":
    main()
