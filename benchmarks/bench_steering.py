"""What steering adds to the time of one clip: paired runs of MicroWan, plain and steered by turns.

OMP_NUM_THREADS=1 python benchmarks/bench_steering.py > benchmarks/results/steering.txt
"""

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from latentloom.micro import default_checkpoint
from latentloom.runs import track
from latentloom.steering import DirectionPayload, Operation, Plan, PromptPayload, steer
from latentloom.wan.pipeline import WanPipeline

NUM_PAIRS = 31
PROMPT = "A small red circle moves to the left on a black background."
INJECTED = "A large green cross moves up on a white background."


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plans(pipeline: WanPipeline) -> dict[str, Plan | None]:
    prompt = PromptPayload(pipeline.encode([INJECTED]))
    vectors = DirectionPayload(0.01 * torch.randn(6, 128, generator=torch.Generator().manual_seed(0)))
    whole, half = (1.0,) * 6, (0.5,) * 6
    return {
        "plain again (the noise of this measurement)": None,
        "replace the context, all blocks": Plan((Operation("context", "replace", whole, prompt),)),
        "lerp the context by 0.5, all blocks": Plan((Operation("context", "lerp", half, prompt),)),
        "add a vector to the context": Plan((Operation("context", "add", whole, vectors),)),
        "add a vector to the hidden states": Plan((Operation("hidden_states", "add", whole, vectors),)),
        "ablate a vector from attention's output": Plan((Operation("attention_output", "ablate", whole, vectors),)),
        "a prompt's hidden states (runs the model again)": Plan((Operation("hidden_states", "lerp", half, prompt),)),
    }


def main() -> None:
    pipeline = WanPipeline.load(default_checkpoint(), device="cpu")
    text = pipeline.encode([PROMPT])

    def clip() -> None:
        pipeline.generate(text, seeds=[0])

    clip()
    print(f"one clip of MicroWan, {NUM_PAIRS} pairs of runs each, {torch.get_num_threads()} thread(s)")
    print(f"{'':<50}{'plain, s':>10}{'steered, s':>12}{'ratio':>8}{'middle half of ratios':>25}")
    for name, plan in plans(pipeline).items():
        plain, steered = [], []
        for pair in track(NUM_PAIRS, name):
            for is_steered in (False, True) if pair % 2 else (True, False):
                with steer(pipeline, plan) if is_steered and plan is not None else nullcontext():
                    (steered if is_steered else plain).append(seconds(clip))
        ratios = [after / before for before, after in zip(plain, steered, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        times = f"{statistics.median(plain):>10.3f}{statistics.median(steered):>12.3f}"
        print(f"{name:<50}{times}{middle:>8.3f}{f'{low:.3f} to {high:.3f}':>25}", flush=True)


if __name__ == "__main__":
    main()
