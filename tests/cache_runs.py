"""Data sets for the tests of caching, and what their processes run: they import it by name."""

import json
import resource
import sys
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch

from latentloom.errors import FileError
from latentloom.finetune.cache import CachedDataset, CacheModels, cache_dataset, shards
from latentloom.storage import write_video
from latentloom.wan.pipeline import facts_of


def write_clip(path: Path, seed: int, num_frames: int = 9, caption: str | None = None) -> None:
    """A clip of 48 by 48 noise, with its caption beside it unless that is None."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (num_frames, 6, 6, 3), generator=generator, dtype=torch.uint8)
    write_video(path, small.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2), 8)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def write_clips(folder: Path, num: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        write_clip(folder / f"{number:03d}.mp4", number, caption=f"a small red circle moves {'up ' * (number % 5)}")


def run(dataset: Path, checkpoint: Path, **options: bool | int) -> CachedDataset:
    """Cache a data set on the CPU in float32, captions included unless told otherwise."""
    models = CacheModels.of(checkpoint, torch.device("cpu"), torch.float32)
    return cache_dataset(dataset, models, facts=facts_of(checkpoint), **{"cache_text": True, **options})


def run_in_process(rank: int, dataset: str, blocked: str, checkpoint: str, out: str) -> None:
    """One process of two: what it is told of a data set whose cache cannot be written, and of one that is cached."""
    try:
        error = str(run(Path(blocked), Path(checkpoint)))
    except FileError as raised:
        error = str(raised)
    done = run(Path(dataset), Path(checkpoint))
    sizes = [[size.num_frames, size.height, size.width] for size in done.sizes]
    sums = [float(done[index].latents.double().sum()) for index in range(len(done))]
    told = [error, done.names, sizes, done.report.num_computed, sums, sorted(done.report.skipped)]
    Path(out, f"{rank}.json").write_text(json.dumps(told))


def start(dataset: Path, checkpoint: Path, *, largest_file: int | None = None) -> ForkProcess:
    """A process that caches with one clip per shard; files above a size fail to be written, as on a full disk.

    It is forked: a new interpreter would spend seconds on imports.
    """
    process = get_context("fork").Process(target=_run_forked, args=(dataset, checkpoint, largest_file))
    process.start()
    return process


def _run_forked(dataset: Path, checkpoint: Path, largest_file: int | None) -> None:
    shards.SHARD_SECONDS = 0.0
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    with (dataset.parent / "error.txt").open("w") as file:
        try:
            run(dataset, checkpoint)
        except FileError as error:
            file.write(str(error)[: largest_file or None])
            sys.exit(2)
