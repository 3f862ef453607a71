"""Clips per second and peak memory of caching latents, beside bare PyAV decoding and VAE encoding of the same files.

Bare is one loop: PyAV decodes and scales every frame that is needed, the VAE encodes each clip, nothing is kept.
Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_cache.py > benchmarks/results/cache.txt
"""

import ctypes
import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from apart import call_apart
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from latentloom.finetune.cache import CacheModels, cache_dataset
from latentloom.micro import default_checkpoint
from latentloom.storage import write_video
from latentloom.wan import facts
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.vae import encode_video

MICRO = facts.get("micro")
CPU = torch.device("cpu")


class Files(NamedTuple):
    """What is encoded: a number of clips of one size on disk, brought to `size`; every n-th frame is needed."""

    num: int
    source: ClipSize
    every: int
    size: ClipSize


SETS = {
    "small": Files(200, ClipSize(9, 48, 48), 1, ClipSize(9, 48, 48)),
    "large": Files(24, ClipSize(51, 360, 640), 3, ClipSize(17, 96, 160)),
}
WAYS = ("bare", "cache", "cache, batches of 4", "again", "again, trusted")


def main() -> None:
    print(f"MicroWan's VAE in float32 on the CPU, torch {torch.__version__}, 1 thread, {processor()}")
    report({name: files.num for name, files in SETS.items()}, num_rounds=3)


def report(numbers: Mapping[str, int], num_rounds: int) -> None:
    """Print a table per set.

    Args:
        numbers: how many files of each set.
        num_rounds: the median of so many counts.
    """
    print(f"clips/s: median of {num_rounds} rounds, the ways in turns, each round a process of its own, models loaded")
    print("before and not counted; peak MB: beyond the process with the loaded VAE")
    for name, num in numbers.items():
        with tempfile.TemporaryDirectory() as folder:
            files = SETS[name]._replace(num=num)
            write_clips(files, Path(folder) / "clips")
            _report_set(files, Path(folder), num_rounds)


def _report_set(files: Files, folder: Path, num_rounds: int) -> None:
    source, size = files.source, files.size
    print(
        f"\n{files.num} clips of {source.width}x{source.height}, {source.num_frames} frames, "
        f"to {size.width}x{size.height}, {size.num_frames} frames"
    )
    results: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(num_rounds):
        for way in WAYS:
            results[way] += call_apart(_measured, way, files, folder)
    bare = _median([seconds for seconds, _ in results["bare"]])
    print(f"{'':22} {'clips/s':>9} {'x bare':>7} {'peak MB':>9}")
    for way, rounds in results.items():
        seconds = _median([seconds for seconds, _ in rounds])
        peak = _median([megabytes for _, megabytes in rounds])
        print(f"{way:22} {files.num / seconds:9.1f} {bare / seconds:7.2f} {peak:9.0f}", flush=True)


def _measured(way: str, files: Files, folder: Path) -> tuple[float, float]:
    """Seconds of one pass over the files, and the megabytes that it needs at most."""
    logging.disable()
    models = CacheModels.of(default_checkpoint(), CPU, torch.float32)
    vae = models.vae()
    run = _call(way, files, folder, models, vae)
    encode_video(vae, torch.zeros(1, files.size.num_frames, files.size.height, files.size.width, 3).byte(), CPU)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    started = time.perf_counter()
    run()
    return time.perf_counter() - started, _resident("VmHWM") - before


def _call(way: str, files: Files, folder: Path, models: CacheModels, vae: AutoencoderKLWan) -> Callable[[], object]:
    if way == "bare":
        return lambda: [_bare(path, files, vae) for path in sorted((folder / "clips").glob("*.mp4"))]
    file = write_dataset(folder, files.size)
    loaded = CacheModels(
        lambda: vae, models.text_encoder, models.vae_fingerprint, models.text_fingerprint, CPU, torch.float32
    )
    if not way.startswith("again"):
        shutil.rmtree(folder / "clips" / "cache", ignore_errors=True)
    batch_size = 4 if "batches" in way else 1
    trust = "trusted" in way
    return lambda: cache_dataset(file, loaded, facts=MICRO, cache_text=False, trust=trust, batch_size=batch_size)


def _bare(path: Path, files: Files, vae: AutoencoderKLWan) -> None:
    frames = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % files.every == 0:
                scaled = frame.reformat(files.size.width, files.size.height, "rgb24", interpolation="LANCZOS")
                frames.append(scaled.to_ndarray())
            if len(frames) == files.size.num_frames:
                break
    encode_video(vae, torch.from_numpy(np.stack(frames))[None], CPU)


def write_dataset(folder: Path, size: ClipSize) -> Path:
    """The data set's file: all of `folder/clips` in one size."""
    file = folder / "dataset.toml"
    file.write_text(
        f"resolutions = [[{size.width}, {size.height}]]\nframe_buckets = [{size.num_frames}]\n"
        "[[directory]]\npath = 'clips'\n"
    )
    return file


def write_clips(files: Files, folder: Path) -> None:
    """Clips of moving blocks: noise would be larger than any real video."""
    source, generator = files.source, torch.Generator().manual_seed(0)
    folder.mkdir()
    for number in range(files.num):
        small = torch.randint(0, 256, (1, source.height // 12, source.width // 12, 3), generator=generator)
        still = small.byte().repeat_interleave(12, dim=1).repeat_interleave(12, dim=2)
        frames = torch.cat([still.roll(2 * frame, dims=2) for frame in range(source.num_frames)])
        write_video(folder / f"{number:04d}.mp4", frames, MICRO.fps * files.every)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _resident(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def processor() -> str:
    """The name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
