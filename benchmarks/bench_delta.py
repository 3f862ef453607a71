"""Times an epoch of delta training fused, packed and padded, beside the fused way's matrix products alone (the floor).

How far the ways' losses and gradients are apart, and the memory that their steps need, come with it.
Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_delta.py > benchmarks/results/delta.txt
"""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from latentloom.delta.baselines import token_centre
from latentloom.delta.config import TrainConfig
from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pooled_delta import Method, pooled_delta
from latentloom.delta.train import TrainingPairs, make_optimizer, train_epoch
from latentloom.tensors import TextEmbeddings
from latentloom.tensors.text_embeddings import PADDED_LENGTH
from latentloom.training import WeightAverage

NUM_PAIRS, WIDTH, RANK, BATCH = 750, 4096, 64, 64
NUM_GATE_UNITS = 32
MEAN_LENGTHS = (12, 90)
SPREAD = 0.6  # standard deviation of log(length)
REWRITE_LENGTH = 8  # training sees rewrites only pooled
TOKEN_NORM = 11.0  # about that of UMT5-XXL


class Way(NamedTuple):
    """How the corrections are pooled; the number of positions where it is not the longest prompt's."""

    method: Method
    pad_to: int | None = None


WAYS = {
    "fused": Way("fused"),
    "packed": Way("packed"),
    "padded to batch max": Way("padded"),
    f"padded to {PADDED_LENGTH}": Way("padded", PADDED_LENGTH),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--memory-of", choices=WAYS, help="print one way's memory as JSON; used by the benchmark")
    parser.add_argument("--mean-length", type=int, default=MEAN_LENGTHS[0])
    arguments = parser.parse_args()
    if arguments.memory_of is not None:
        print(json.dumps(_memory(WAYS[arguments.memory_of], arguments.mean_length)))
        return
    print(f"{NUM_PAIRS} pairs, d={WIDTH}, rank {RANK}, batch {BATCH}, float32")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {_processor()}")
    print(f"median of 7 epochs, of 3 padded to batch max; padded to {PADDED_LENGTH}: two steps, scaled to the epoch")
    print("peak MB: what two steps need at most beyond data and weights")
    print("values (pooled corrections, loss terms) and gradients: the largest relative distance from the fused way's")
    for mean_length in MEAN_LENGTHS:
        _report(mean_length)


def _report(mean_length: int) -> None:
    pairs = _pairs(mean_length)
    lengths = pairs.base.lengths
    print(f"\nmean length {mean_length}: {int(lengths.sum())} tokens, lengths {lengths.min()} to {lengths.max()}")
    training, two_batches = TrainingPairs(pairs), TrainingPairs(pairs[: 2 * BATCH])
    unpadded = {"floor": _floor(training), "  of corrections": _floor(training, whole=False)}
    unpadded |= {name: _epoch(way, training) for name, way in WAYS.items() if way.method != "padded"}
    seconds = _medians(unpadded, 7)
    for name, way in WAYS.items():
        if way.method == "padded" and way.pad_to is None:
            seconds |= _medians({name: _epoch(way, training)}, 3)
        elif way.method == "padded":
            seconds[name] = NUM_PAIRS / (2 * BATCH) * _medians({name: _epoch(way, two_batches)}, 1)[name]
    floor, fused = seconds["floor"], seconds["fused"]
    print(f"{'':20} {'s/epoch':>9} {'x floor':>9} {'x fused':>9} {'peak MB':>9} {'values':>9} {'gradients':>9}")
    for name in ("floor", "  of corrections"):
        print(f"{name:20} {seconds[name]:9.3f} {seconds[name] / floor:9.2f} {seconds[name] / fused:9.2f}")
    expected = _values_and_gradients(WAYS["fused"], pairs)
    for name, way in WAYS.items():
        values, gradients = zip(expected, _values_and_gradients(way, pairs), strict=True)
        print(
            f"{name:20} {seconds[name]:9.3f} {seconds[name] / floor:9.2f} {seconds[name] / fused:9.2f} "
            f"{_memory_in_child(name, mean_length):9.0f} {_difference(*values):9.1e} {_difference(*gradients):9.1e}"
        )


def _pairs(mean_length: int, num: int = NUM_PAIRS) -> PairEmbeddings:
    """Made-up pairs: log-normal lengths of that mean, tokens around a common offset as long as what differs."""
    generator = torch.Generator().manual_seed(mean_length)
    drawn = (SPREAD * torch.randn(NUM_PAIRS, generator=generator)).exp() * mean_length
    for _ in range(20):  # clipping and rounding move the mean
        drawn = drawn * mean_length / drawn.round().clamp(2, PADDED_LENGTH).mean()
    lengths = drawn.round().clamp(2, PADDED_LENGTH)
    scale = TOKEN_NORM / (2 * WIDTH) ** 0.5
    offset = scale * torch.randn(WIDTH, generator=generator)

    def side(counts: Tensor) -> TextEmbeddings:
        tokens = torch.randn(int(counts.sum()), WIDTH, generator=generator)
        return TextEmbeddings(tokens.mul_(scale).add_(offset), counts)

    return PairEmbeddings(side(lengths[:num].long()), side(torch.full((num,), REWRITE_LENGTH)))


def _adapter(pairs: TrainingPairs) -> EmbeddingDelta:
    """An adapter in the midst of training: the cap cuts about half of its corrections."""
    torch.manual_seed(0)
    adapter = EmbeddingDelta(DeltaConfig(d_model=WIDTH, rank=RANK, gate_width=NUM_GATE_UNITS))
    assert adapter.gate_net is not None
    assert adapter.config.cap is not None
    with torch.no_grad():
        adapter.centre.copy_(token_centre(pairs.base))
        adapter.gate_net.fit_scale(torch.cat([pairs.base.features, pairs.rewritten_features]))
        # LN(e) - centre is about sqrt(D/2) long, its product with `down` about sqrt(r/2)
        adapter.up.normal_().mul_(0.8 * adapter.config.cap * TOKEN_NORM / (WIDTH * RANK / 2) ** 0.5)
        adapter.bias.normal_().mul_(0.1 * TOKEN_NORM / WIDTH**0.5)
    return adapter


def _config(way: Way) -> TrainConfig:
    return TrainConfig(rank=RANK, batch_size=BATCH, method=way.method)


def _epoch(way: Way, training: TrainingPairs) -> Callable[[], object]:
    """A call that trains an epoch as training does: batches, loss, gradients, Adam, running mean of the weights."""
    adapter, config = _adapter(training), _config(way)
    optimizer, average, epochs = make_optimizer(adapter, config), WeightAverage(adapter, config.ema_decay), count()
    return lambda: train_epoch(adapter, training, optimizer, config, next(epochs), average, way.pad_to)


def _floor(training: TrainingPairs, whole: bool = True) -> Callable[[], None]:
    """A call that does the matrix products of a fused epoch alone: batches that already lie in a row, results that are
    already allocated, the faster of the layouts, and nothing done twice.

    Per batch of n tokens and B prompts, D channels, r the rank. Of the corrections: [2r+1, D] with the tokens [D, n]
    and the gradient of that; the Gram matrix of [D, r+1] and its gradient; the n quadratic forms in it and both their
    gradients; the pooled [B, r+1] with [r+1, D] and both its gradients. Of the loss, left out unless `whole`: the
    contrast's [B, D] with [D, B], the gate's [B, D+2] with [D+2, 32] for both sides, and one gradient of each.
    """
    base = training.base.embeddings
    order = torch.randperm(NUM_PAIRS, generator=torch.Generator().manual_seed(0))
    sizes = [int(base.lengths[rows].sum()) for rows in order.split(BATCH)]

    def epoch() -> None:
        for tokens in base.tokens.split(sizes):
            products_of_corrections(tokens)
            if whole:
                products_of_loss()

    products_of_corrections, products_of_loss = _products_of_corrections(max(sizes)), _products_of_loss()
    return epoch


def _products_of_corrections(most: int) -> Callable[[Tensor], None]:
    wide, narrow = 2 * RANK + 1, RANK + 1
    weights, weights_out = torch.randn(2, wide, WIDTH)
    spread, spread_out = torch.randn(2, narrow, WIDTH)
    gram, gram_out = torch.randn(2, narrow, narrow)
    pooled, pooled_out = torch.randn(2, BATCH, narrow)
    mean = torch.empty(BATCH, WIDTH)
    all_products, all_products_out = torch.randn(2, most, wide)
    all_inner, all_inner_out = torch.randn(2, most, narrow)

    def compute(tokens: Tensor) -> None:
        num = len(tokens)
        products, products_out = all_products[:num], all_products_out[:num]
        inner, inner_out = all_inner[:num], all_inner_out[:num]
        torch.mm(tokens, weights.T, out=products_out)
        torch.mm(products.T, tokens, out=weights_out)
        torch.mm(spread, spread.T, out=gram_out)
        torch.mm(gram, spread, out=spread_out)
        torch.mm(inner, gram, out=inner_out)
        torch.mm(inner, gram, out=inner_out)
        torch.mm(inner.T, inner, out=gram_out)
        torch.mm(pooled, spread, out=mean)
        torch.mm(mean, spread.T, out=pooled_out)
        torch.mm(pooled.T, mean, out=spread_out)

    return compute


def _products_of_loss() -> Callable[[], None]:
    adjusted, targets, adjusted_out = torch.randn(3, BATCH, WIDTH)
    similar = torch.empty(BATCH, BATCH)
    features = torch.randn(2, BATCH, WIDTH + 2)
    hidden, hidden_out = torch.randn(2, NUM_GATE_UNITS, WIDTH + 2)
    units = torch.empty(BATCH, NUM_GATE_UNITS)

    def compute() -> None:
        torch.mm(adjusted, targets.T, out=similar)
        torch.mm(similar, targets, out=adjusted_out)
        for side in features:
            torch.mm(side, hidden.T, out=units)
            torch.mm(units.T, side, out=hidden_out)

    return compute


def _medians(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds that each call takes, the first time not counted; in turns, as other work on the machine slows all."""
    seconds = {name: [] for name in calls}
    for _ in range(1 + repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: sorted(times[1:])[repeats // 2] for name, times in seconds.items()}


def _values_and_gradients(way: Way, pairs: PairEmbeddings) -> tuple[list[Tensor], list[Tensor]]:
    """Of the first batch: the pooled corrections, the terms of the loss, and each parameter's gradient."""
    training = TrainingPairs(pairs[:BATCH])
    adapter = _adapter(training)
    still = torch.optim.SGD(adapter.parameters(), lr=0.0)
    terms = train_epoch(adapter, training, still, _config(way), 0, pad_to=way.pad_to)
    gradients = [parameter.grad for parameter in adapter.parameters()]
    with torch.no_grad():
        pooled = pooled_delta(adapter, training.base, *way)
    # the terms as one: some are 1 - cos, of which the cosine's last bit can be 2e-5
    return [*pooled, terms], [gradient for gradient in gradients if gradient is not None]


def _difference(expected: list[Tensor], given: list[Tensor]) -> float:
    """The largest relative distance, in L2, of two tensors of the lists."""
    pairs = zip(expected, given, strict=True)
    return max(((one - other).norm() / one.norm()).item() for one, other in pairs)


def _memory_in_child(name: str, mean_length: int) -> float:
    command = [sys.executable, __file__, "--memory-of", name, "--mean-length", str(mean_length)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def _memory(way: Way, mean_length: int) -> float:
    """Megabytes that two steps need at most beyond what was there before them; the same two batches for every way."""
    epoch = _epoch(way, TrainingPairs(_pairs(mean_length, 2 * BATCH)))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    epoch()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
