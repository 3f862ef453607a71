"""A bridge's steps, loss, decoding and vectors: speed and memory, each beside the plain way and the floor.

Every figure is measured in a process of its own, so that its peak of memory is its own: megabytes beyond those in use
once the model is loaded. The floor is the matrix products of the work (torch's FlopCounterMode) at the rate of this
machine's large bfloat16 products. Texts are random tokens with the lengths of dictionary glosses (a median of 14); no
figure depends on what they say.
Run: OMP_NUM_THREADS=2 .venv/bin/python benchmarks/bench_bridge.py > benchmarks/results/bridge.txt
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from apart import call_apart, watched_memory
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from latentloom.bridge.backbone import Backbone, load_backbone
from latentloom.bridge.batches import LengthBuckets
from latentloom.bridge.config import BridgeConfig, ModelConfig
from latentloom.bridge.decoding import DecodingConfig, continue_tokens, inference
from latentloom.bridge.features import pooled_features
from latentloom.bridge.loss import linear_cross_entropy
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.sentence_encoders import MINILM_PACKAGE, load_sentence_encoder
from latentloom.bridge.train import BridgeTraining

CPU = torch.device("cpu")
DIM = 384
LONGEST = 1024
#: Rows of a batch that is padded to LONGEST: a full one would take minutes.
FEW = 2
NEW_TOKENS = 24


class Measure(NamedTuple):
    """What one process found.

    Args:
        seconds: of one piece of work, the median of a few.
        amount: of what it does, such as tokens.
        megabytes: at most.
        operations: of its matrix products; 0 where they were not counted.
    """

    seconds: float
    amount: float
    megabytes: float
    operations: float = 0.0

    @property
    def speed(self) -> float:
        return self.amount / self.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a random model of two small layers instead of SmolLM2")
    tiny = parser.parse_args().tiny
    threads = torch.get_num_threads()
    rate = once(matmul_rate, threads)
    print(
        f"{'a random tiny model' if tiny else 'SmolLM2-135M-Instruct'}, bfloat16, torch {torch.__version__}, ", end=""
    )
    print(f"{threads} thread(s), {platform.machine()}; large products: {rate / 1e9:.0f} GFLOP/s\n")
    print(f"{'':52}{'per second':>14}{'ms':>10}{'floor ms':>10}{'MB':>8}")
    cached, rerun = (once(t2l_steps, tiny, kept, threads) for kept in (True, False))
    show("t2l, 64 texts: steps with cached features", cached, rate)
    show("t2l, 64 texts: steps that run the backbone", rerun, rate)
    print(f"  cached against run again: {cached.speed / rerun.speed:.0f} times as many steps\n")
    ways = {"length buckets": 16, "random batches, padded to the batch": 16, "padded to 1024": FEW}
    found = {way: once(l2t_steps, tiny, way, rows, threads) for way, rows in ways.items()}
    for way, measure in found.items():
        show(f"l2t, {ways[way]} texts, {way}: target tokens", measure, rate)
    for way in list(ways)[1:]:
        print(f"  buckets against {way}: {found['length buckets'].speed / found[way].speed:.2f} times as many tokens")
    print()
    for words in (49_152, 151_936):
        ours, plain = (once(cross_entropy, words, is_ours, threads) for is_ours in (True, False))
        show(f"loss and gradient, {words:,} words: rows, in chunks", ours, rate)
        show(f"loss and gradient, {words:,} words: rows, all logits", plain, rate)
    print()
    ours, theirs = (once(decoding, tiny, is_ours, threads) for is_ours in (True, False))
    show("decoding 16 vectors, greedy: tokens, ours", ours, rate)
    show("decoding 16 vectors, greedy: tokens, generate()", theirs, rate)
    print()
    if find_spec(MINILM_PACKAGE) is None:
        print(f"vectors of texts: {MINILM_PACKAGE} is not installed")
        return
    show("MiniLM: texts, by tokens", once(encoding, True, threads), rate)
    show("MiniLM: texts, 32 at a time", once(encoding, False, threads), rate)


def show(name: str, measure: Measure, rate: float) -> None:
    floor = f"{measure.operations / rate * 1e3:.1f}" if measure.operations else "-"
    print(f"{name:52}{measure.speed:>14.1f}{measure.seconds * 1e3:>10.1f}{floor:>10}{measure.megabytes:>8.0f}")


def once(work: Callable[..., Any], *given: Any) -> Any:
    """What a function gives in a process of its own."""
    return call_apart(work, *given)[0]


def matmul_rate(threads: int) -> float:
    """Operations per second of the best large product."""
    torch.set_num_threads(threads)
    size = 2048
    left, right = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / min(seconds_of(lambda: left @ right) for _ in range(5))


def t2l_steps(tiny: bool, kept: bool, threads: int) -> Measure:
    torch.set_num_threads(threads)
    training = make_training(tiny, "t2l", 64, num=64, cache_features=kept)
    return measured(lambda step: training.step(step, measures=False), 1.0, 30 if kept else 2)


def l2t_steps(tiny: bool, way: str, rows: int, threads: int) -> Measure:
    torch.set_num_threads(threads)
    kind = PaddedBridge if way == "padded to 1024" else LatentBridge
    training = make_training(tiny, "l2t", rows, num=1024, kind=kind)
    if way != "length buckets":
        training.text_batches = RandomBatches([len(row) for row in training.ids], rows, 1, 0)
    num_steps = 1 if kind is PaddedBridge else 5
    batches = [training.text_batches.batch(step) for step in range(num_steps + 1)]
    tokens = [sum(len(training.ids[row]) + 1 for row in batch) for batch in batches]
    return measured(lambda step: training.step(step, measures=False), statistics.mean(tokens[1:]), num_steps)


def cross_entropy(words: int, is_ours: bool, threads: int) -> Measure:
    torch.set_num_threads(threads)
    num, width = 256, 576
    weight = torch.randn(words, width, dtype=torch.bfloat16) * 0.05
    hidden = torch.randn(num, width, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(words, (num,))

    def work(_: int) -> None:
        hidden.grad = None
        if is_ours:
            linear_cross_entropy(hidden, weight, targets)[0].mean().backward()
        else:
            F.cross_entropy((hidden @ weight.T).float(), targets).backward()

    return measured(work, num, 3)


def decoding(tiny: bool, is_ours: bool, threads: int) -> Measure:
    torch.set_num_threads(threads)
    bridge = make_bridge(tiny)
    vectors = torch.randn(16, DIM, generator=torch.Generator().manual_seed(1))
    config = DecodingConfig(max_new_tokens=NEW_TOKENS)
    made: list[int] = []

    @torch.no_grad()
    def work(_: int) -> None:
        with inference(bridge):
            before = bridge.prefix(vectors)
            seen = torch.ones(before.shape[:2], dtype=torch.bool)
            if is_ours:
                ids = continue_tokens(bridge, before, seen, config, None)
            else:
                end = bridge.backbone.end_id
                rows = bridge.network.generate(
                    inputs_embeds=before,
                    attention_mask=seen.long(),
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=end,
                    pad_token_id=end,
                ).tolist()
                ids = [row[: row.index(end) + 1] if end in row else row for row in rows]
        made[:] = [sum(map(len, ids))]

    work(0)
    return measured(work, made[0], 2)


def encoding(is_ours: bool, threads: int) -> Measure:
    torch.set_num_threads(threads)
    encoder = load_sentence_encoder("minilm", "cpu")
    texts = [" ".join(["quiet"] * length) for length in lengths(192)]

    def work(_: int) -> None:
        if is_ours:
            encoder.encode(texts)
        else:
            encoder.model.encode(texts, batch_size=32, show_progress_bar=False)

    return measured(work, len(texts), 2)


class PaddedBridge(LatentBridge):
    """A bridge that pads every batch to the longest text allowed, as loaders that pad to a fixed length do."""

    def _right_padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        tokens, given = super()._right_padded(rows)
        more = LONGEST - tokens.shape[1]
        return F.pad(tokens, (0, more), value=self.backbone.end_id), F.pad(given, (0, more))


class RandomBatches(LengthBuckets):
    """Rows drawn at random, whatever their lengths."""

    def batch(self, step: int, rank: int = 0) -> list[int]:
        drawn = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(step))
        return drawn[: self.step_size].tolist()


def make_training(
    tiny: bool, task: str, rows: int, num: int, kind: type[LatentBridge] = LatentBridge, cache_features: bool = True
) -> BridgeTraining:
    training = {"task": task, "train_batch_size": rows, "t2l_batch_size": rows, "cache_features": cache_features}
    config = BridgeConfig.model_validate({"model": {"lora": {"rank": 0}}, "training": training})
    bridge = make_bridge(tiny, kind)
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, min(300, bridge.backbone.vocab_size), length).tolist() for length in lengths(num)]
    vectors = generator.normal(size=(num, DIM)).astype(np.float32)
    pairs = PairSet([str(row) for row in range(num)], vectors, f"random pairs {num}")
    features = None
    if task == "t2l" and cache_features:
        features = pooled_features(bridge, ids, Path(tempfile.mkdtemp()))
    return BridgeTraining(bridge, ids, pairs, features, config)


def make_bridge(tiny: bool, kind: type[LatentBridge] = LatentBridge) -> LatentBridge:
    config = ModelConfig.model_validate({"lora": {"rank": 0}})
    backbone = tiny_backbone() if tiny else load_backbone(config, device=CPU, dtype=torch.bfloat16)
    torch.manual_seed(0)
    return kind(backbone, config, DIM).eval()


def tiny_backbone() -> Backbone:
    config = LlamaConfig(
        vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"<end>": 0}, [])), eos_token="<end>")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    return Backbone(model.eval().requires_grad_(False), tokenizer, "tiny", "tiny")


def lengths(num: int) -> list[int]:
    drawn = np.random.default_rng(7).lognormal(np.log(14), 0.55, num)
    return np.clip(drawn.round(), 3, 80).astype(int).tolist()


def measured(work: Callable[[int], Any], amount: float, rounds: int) -> Measure:
    """Time, memory and operations of one piece of work, which is given its number; the first one warms up."""
    with watched_memory() as peak:
        with FlopCounterMode(display=False) as counter:
            work(0)
        times = [seconds_of(lambda number=number: work(number)) for number in range(1, rounds + 1)]
        return Measure(statistics.median(times), amount, peak(), counter.get_total_flops())


def seconds_of(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
