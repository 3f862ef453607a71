"""Times MicroWan's transformer on 512 padded text rows, on folded rows, and on no text at all (the floor).

Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_folded_padding.py
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from latentloom.micro import default_checkpoint
from latentloom.micro.score import prompt_set
from latentloom.wan.folded_padding import fold_padding
from latentloom.wan.pipeline import WanPipeline

NUM_CLIPS = 16
REPEATS = 7


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint())
    transformer = pipeline.transformer
    embeddings = pipeline.encode([item.prompt for item in prompt_set("verbose", NUM_CLIPS)])
    latents = torch.randn(NUM_CLIPS, 16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    timestep = torch.full((NUM_CLIPS,), 500.0)

    def predict(context: Tensor) -> Tensor:
        with torch.no_grad():
            return transformer(latents, timestep, context, return_dict=False)[0]

    padded = embeddings.padded(512)
    full = _seconds(lambda: predict(padded))
    with fold_padding(transformer) as fold:
        folded = _seconds(lambda: predict(fold(embeddings)))
        short = predict(fold(embeddings))
    difference = (short - predict(padded)).abs().max().item()
    floor = _seconds(lambda: predict(padded[:, :1]))
    longest = int(embeddings.lengths.max())
    print(f"{NUM_CLIPS} clips of 27 tokens, texts of at most {longest} rows; largest difference {difference:.1e}")
    for name, seconds in (("512 rows", full), ("folded", folded), ("one row (floor)", floor)):
        print(f"{name:16} {1000 * seconds:7.1f} ms   {seconds / floor:5.2f} x floor   {full / seconds:5.2f} x faster")


def _seconds(call: Callable[[], Tensor]) -> float:
    """Median time of a call, the first one not counted."""
    call()
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    main()
