"""How fast clips come out of shards, beside bare webdataset with the same decoding and plain reading of the files.

50 shards of 40 clips, as MicroWan's frames are stored: latents [16, 17, 6, 6] and texts [512, 128] in float16, with
prompts. Times are medians of 5 rounds, in which the ways take turns; the files are in the page cache. The memory that
is counted is what the process holds itself, at its highest.
Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_shards.py > benchmarks/results/shards.txt
"""

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from apart import call_apart, watched_memory
from webdataset.compat import WebDataset

from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.shard_stream import stream_shards
from latentloom.drifting.clips.shard_writer import ShardWriter

NUM_SHARDS, CLIPS_PER_SHARD, ROUNDS, BATCH = 50, 40, 5, 64
NUM_CLIPS = NUM_SHARDS * CLIPS_PER_SHARD


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "shards"
        write(folder)
        started = time.perf_counter()
        index = ShardIndex.open(folder)
        first = time.perf_counter() - started
        started = time.perf_counter()
        ShardIndex.open(folder)
        again = time.perf_counter() - started
        megabytes = sum(path.stat().st_size for path in folder.glob("*.tar")) / 1e6
        print(f"{NUM_CLIPS} clips in {NUM_SHARDS} shards, {megabytes:.0f} MB; medians of {ROUNDS} rounds, one thread\n")
        ways: dict[str, Callable[[], int]] = {
            "plain reading of the tars (the floor)": lambda: read_plainly(folder),
            "webdataset, nothing decoded": lambda: sum(1 for _ in bare(folder)),
            "webdataset, the same decoding": lambda: sum(1 for _ in decoded(folder)),
            "stream_shards": lambda: sum(1 for _ in stream_shards(folder)),
            "ShardIndex.load, any order": lambda: load(index, with_text=False),
            "ShardIndex.load and load_text": lambda: load(index, with_text=True),
        }
        seconds = timed(ways)
        print(f"{'':40}{'clips/s':>10}{'MB/s of tar':>13}")
        for name in ways:
            print(f"{name:40}{NUM_CLIPS / seconds[name]:10.0f}{megabytes / seconds[name]:13.0f}")
        ratio = seconds["webdataset, the same decoding"] / seconds["stream_shards"]
        print(f"\nstream_shards over webdataset with the same decoding: {ratio:.2f} of its speed")
        print(f"ShardIndex.open: {first:.2f} s the first time ({NUM_CLIPS / first:.0f} clips/s), {again:.3f} s again")
        print("\nmost memory while streaming, MB beyond what was held after the first clip")
        for num_shards in (5, 25, 50):
            (grown,) = call_apart(growth, str(folder), num_shards)
            print(f"{num_shards:4} shards{grown:8.1f}")


def write(folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    with ShardWriter(folder, space="latent", frames="each", clips_per_shard=CLIPS_PER_SHARD) as writer:
        for number in range(NUM_CLIPS):
            values = torch.randn(16, 17, 6, 6, generator=generator)
            text = torch.randn(8 + number % 24, 128, generator=generator)
            writer.write(f"{number:06d}", values, text, f"prompt {number}")


def timed(ways: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Median seconds of each way; in every round each has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            started = time.perf_counter()
            num_done = way()
            seconds[name].append(time.perf_counter() - started)
            assert num_done == NUM_CLIPS or "plain" in name
    return {name: statistics.median(times) for name, times in seconds.items()}


def read_plainly(folder: Path) -> int:
    num_bytes = 0
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb", buffering=0) as file:
            while block := file.read(2**20):
                num_bytes += len(block)
    return num_bytes


def bare(folder: Path) -> WebDataset:
    return WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False)


def decoded(folder: Path) -> Iterator[tuple]:
    """What anyone would write: torch.load of the members, float32, the text without its padding; nothing is checked."""

    def decode(sample: dict) -> tuple:
        values = torch.load(io.BytesIO(sample["latent.pt"]), weights_only=True).float()
        padded = torch.load(io.BytesIO(sample["embed.pt"]), weights_only=True)
        length = int(padded.ne(0).any(dim=1).nonzero()[-1]) + 1
        return values, padded[:length].float(), sample["prompt.txt"].decode()

    return map(decode, bare(folder))


def load(index: ShardIndex, with_text: bool) -> int:
    num_loaded = 0
    for rows in torch.randperm(len(index), generator=torch.Generator().manual_seed(0)).split(BATCH):
        num_loaded += len(index.load(rows))
        if with_text:
            index.load_text(rows)
    return num_loaded


def growth(folder: str, num_shards: int) -> float:
    clips = iter(stream_shards(f"{folder}/shard-{{00000..{num_shards - 1:05d}}}.tar"))
    next(clips)
    with watched_memory() as most:
        for _ in clips:
            pass
        return most()


if __name__ == "__main__":
    main()
