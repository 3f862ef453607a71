"""The training step and the cache: seconds and memory of each way to train, beside what bounds them and plain code.

The floor is the step's matrix products (recomputing not counted) at the rate of this machine's fastest large product;
for bfloat16 too, whose products may be faster.
Plain is diffusers' WanTransformer3DModel with peft's adapter, or transformers' UMT5EncoderModel in front of it, in a
loop of a dozen lines: same batches, same first weights, torch's AdamW, texts padded to 512 as Wan does it.
Run: OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bench_finetune.py > benchmarks/results/finetune.txt
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import bench_cache
import torch
from apart import call_apart, watched_memory
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from trained_models import MODELS, Model, prepare
from transformers import UMT5EncoderModel

from latentloom.finetune.batches import BatchPlan
from latentloom.finetune.cache import CacheModels, cache_dataset
from latentloom.finetune.cache.dataset import CachedDataset
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.lora import init_lora, lora_targets
from latentloom.finetune.micro_batches import MicroBatch, MicroBatchMaker
from latentloom.finetune.objective import NoiseLevels, flow_matching_loss
from latentloom.finetune.session import make_session
from latentloom.finetune.stages.processes import joined_processes
from latentloom.finetune.stages.row import wiring_for
from latentloom.tensors import TextEmbeddings
from latentloom.wan import facts
from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer, load_transformer
from latentloom.wan.folded_padding import fold_padding
from latentloom.wan.text_encoder import MAX_TOKENS

CPU = torch.device("cpu")
MICRO = facts.get("micro")
RANK = 16


class Case(NamedTuple):
    """One way to train.

    Args:
        bound: the case whose floor and plain loop this one is held against.
        model, run: settings that differ from the plainest.
        is_plain: the plain loop instead of ours.
        folds: the plain loop folds the rows of text as ours does, which tells what of the difference is that.
    """

    bound: str
    model: Mapping[str, Any] = {}
    run: Mapping[str, Any] = {}
    is_plain: bool = False
    folds: bool = False


class Measure(NamedTuple):
    """What one process found.

    Args:
        seconds: of a step.
        megabytes: at most.
        loss: of the last step.
        operations: of the matrix products of a step; 0 where they were not counted.
        rate: operations per second of large products, measured after the steps.
    """

    seconds: float
    megabytes: float
    loss: float
    operations: float
    rate: float


ENCODES = {"cache_text_embeddings": False}
TRAINS_TEXT = {"cache_text_embeddings": False, "train_text_encoder": True}


def cases(model: Model) -> dict[str, Case]:
    """Every way to train, by what a person calls it; the first of a bound gives the floor."""
    lora, text, encoder = "LoRA, texts cached", "LoRA, texts encoded at each step", "encoder trained"
    quarters = {"micro_batch_size_per_gpu": model.batch // 4, "gradient_accumulation_steps": 4}
    most = model.num_blocks - 2
    return {
        lora: Case(lora),
        f"{lora}: plain": Case(lora, is_plain=True),
        f"{lora}: plain, folded": Case(lora, is_plain=True, folds=True),
        text: Case(text, ENCODES),
        f"{text}: plain": Case(text, ENCODES, is_plain=True),
        f"half the blocks swapped ({model.num_blocks // 2})": Case(lora, run={"blocks_to_swap": model.num_blocks // 2}),
        f"most blocks swapped ({most})": Case(lora, run={"blocks_to_swap": most}),
        "activation checkpointing": Case(lora, run={"activation_checkpointing": True}),
        "float8 storage": Case(lora, {"transformer_dtype": "float8"}),
        "bfloat16": Case(lora, {"dtype": "bfloat16"}, {"mixed_precision": "bf16"}),
        "4 micro-batches, 1 stage": Case(lora, run=quarters),
        "4 micro-batches, 2 stages": Case(lora, run=quarters | {"pipeline_stages": 2}),
        encoder: Case(encoder, TRAINS_TEXT),
        f"{encoder}: plain": Case(encoder, TRAINS_TEXT, is_plain=True),
        "encoder, activation checkpointing": Case(encoder, TRAINS_TEXT, {"activation_checkpointing": True}),
        "encoder, 4 micro-batches, 1 stage": Case(encoder, TRAINS_TEXT, quarters),
        "encoder, 4 micro-batches, 2 stages": Case(encoder, TRAINS_TEXT, quarters | {"pipeline_stages": 2}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="MicroWan alone, a few steps: does it run?")
    parser.add_argument("--only", default="", help="only the ways to train whose name has this in it")
    given = parser.parse_args()
    print(f"On the CPU, torch {torch.__version__}, 1 thread per process, {bench_cache.processor()}")
    print("s: of a step, median; peak MB: beyond the process with all imports, without mapped files, of the largest")
    print("stage; loss: of the last step. Ours folds the 512 text rows into a few; plain pads unless its row says")
    print("folded, so hold ours against that row for what is not the fold. Plain has its batches ready. Swapping saves")
    print("nothing here, where the device's memory is the host's.")
    with tempfile.TemporaryDirectory() as folder:
        for name, model in list(MODELS.items())[: 1 if given.quick else None]:
            if given.quick:
                model = model._replace(num_steps=3)
            report(name, model, Path(folder) / str(model.num_blocks), given.only)
    print("\nCaching, with MicroWan's VAE:")
    numbers = {"small": 4, "large": 1} if given.quick else {"small": 48, "large": 6}
    bench_cache.report(numbers, num_rounds=1)


def report(name: str, model: Model, folder: Path, only: str = "") -> None:
    """Print the table of one model."""
    root, num_weights = call_apart(prepare, model, folder)[0]
    every = cases(model)
    bounds = {case.bound for title, case in every.items() if only in title}
    chosen = {title: case for title, case in every.items() if only in title or title in bounds}
    found = {title: measured(title, case, model, root, folder) for title, case in chosen.items()}
    rate = max(measure.rate for measure in found.values())
    print(f"\n{name}: {num_weights / 1e6:.1f} million weights in the transformer, rank {RANK} on cross_attn.k and .v")
    print(f"{model.batch} clips of {model.pixels}x{model.pixels}, 9 frames, a step; {model.num_steps} steps")
    print(f"floor: {rate / 1e9:.0f} GFLOP/s, the most that products of 1024 x 1024 matrices reached between the cases")
    print(f"{'':42}{'s':>8}{'floor':>8}{'x floor':>9}{'x plain':>9}{'peak MB':>9}{'loss':>11}")
    for title, case in chosen.items():
        own, bound, plain = found[title], found[case.bound], found.get(f"{case.bound}: plain")
        floor = bound.operations / rate / case.run.get("pipeline_stages", 1)
        beside = f"{own.seconds / plain.seconds:9.2f}" if plain else f"{'':9}"
        print(
            f"{title:42}{own.seconds:8.3f}{floor:8.3f}{own.seconds / floor:9.2f}{beside}{own.megabytes:9.0f}"
            f"{own.loss:11.6f}",
            flush=True,
        )


def measured(title: str, case: Case, model: Model, root: Path, folder: Path) -> Measure:
    """One way to train, in a process of its own, or as many as it has stages: the slowest one's time and memory."""
    work = plain_steps if case.is_plain else our_steps
    counts = title == case.bound
    results = call_apart(work, case, model, root, folder, counts, num_processes=case.run.get("pipeline_stages", 1))
    return Measure(*(max(values) for values in zip(*results, strict=True)))


def product_rate() -> float:
    """Operations per second of the fastest of many products of two large matrices."""
    left, right = torch.randn(2, 1024, 1024).unbind()
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(seconds)


def our_steps(case: Case, model: Model, root: Path, folder: Path, counts: bool) -> Measure:
    """Steps of the trainer, as `latentloom finetune` takes them."""
    config = settings(case, model, folder)
    store = examples(root, folder, case)
    with joined_processes(config.pipeline_stages, "cpu") as place:
        with watched_memory() as peak:
            session = make_session(config, root, MICRO, None, place, store)
            session.train_step(0)
            megabytes = peak()
        return timed(session.train_step, model, megabytes, counts)


def plain_steps(case: Case, model: Model, root: Path, folder: Path, counts: bool) -> Measure:
    """The obvious loop. Its batches are ready before the clock starts."""
    config = settings(case, model, folder)
    wiring = wiring_for(config, CPU)
    steps = plain_batches(config, model, root, examples(root, folder, case))
    with watched_memory() as peak:
        encoder = load_text_encoder(root, torch.float32) if wiring.encodes else None
        if encoder is not None:
            encoder.requires_grad_(wiring.trains_encoder)
        transformer = load_transformer(root, dtype=torch.float32)
        transformer.requires_grad_(False)
        if config.adapter is not None:
            add_adapter(transformer, model.num_blocks)
        models = nn.ModuleList([transformer] if encoder is None else [encoder, transformer])
        trained = [weight for weight in models.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay)

        def step(number: int) -> float:
            given, (target, weight) = steps[number]
            values = wiring.given.unpack(given)
            text = values["text"] if encoder is None else encoded(encoder, values["ids"], values["lengths"])
            with fold_padding(transformer) if case.folds else nullcontext() as fold:
                if fold is None:
                    text = pad(text, (0, 0, 0, MAX_TOKENS - text.shape[1]))
                else:
                    text = fold(TextEmbeddings.from_padded(text, values["lengths"]))
                velocity = transformer(values["noisy"], values["timestep"], text, return_dict=False)[0]
            loss = flow_matching_loss(velocity, target, weight)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, config.gradient_clipping)
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        step(0)
        megabytes = peak()
    return timed(step, model, megabytes, counts)


def timed(step: Callable[[int], float], model: Model, megabytes: float, counts: bool) -> Measure:
    """Steps 1 and on by the clock, and if asked for one more under the counter of matrix products."""
    seconds, loss = [], 0.0
    for number in range(1, 1 + model.num_steps):
        started = time.perf_counter()
        loss = step(number)
        seconds.append(time.perf_counter() - started)
    operations = counted(lambda: step(1 + model.num_steps)) if counts else 0
    return Measure(statistics.median(seconds), megabytes, loss, operations, product_rate())


def counted(work: Callable[[], object]) -> int:
    """Operations of all matrix products that the work computes, two for each multiplication and addition."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return counter.get_total_flops()


def settings(case: Case, model: Model, folder: Path) -> FinetuneConfig:
    trains_text = case.model.get("train_text_encoder", False)
    values: dict[str, Any] = {
        "output_dir": folder / "runs",
        "dataset": folder / "dataset.toml",
        "mixed_precision": "none",
        "micro_batch_size_per_gpu": model.batch,
        "model": {"dtype": "float32", **case.model},
        "adapter": None if trains_text else {"rank": RANK},
        "optimizer": {"lr": 1e-4},
    }
    return FinetuneConfig.model_validate(values | dict(case.run))


def examples(root: Path, folder: Path, case: Case) -> CachedDataset:
    models = CacheModels.of(root, CPU, torch.float32)
    texts = case.model.get("cache_text_embeddings", True)
    return cache_dataset(folder / "dataset.toml", models, facts=MICRO, cache_text=texts, trust=True)


def plain_batches(config: FinetuneConfig, model: Model, root: Path, store: CachedDataset) -> list[MicroBatch]:
    """The batches that `our_steps` sees."""
    plan = BatchPlan(store.sizes, range(len(store)), model.batch, model.batch, 1, config.seed)
    maker = MicroBatchMaker(
        store=store,
        wiring=wiring_for(config, CPU),
        model=config.model,
        levels=NoiseLevels.of(config.model),
        tokenizer=load_tokenizer(root),
        dtype=torch.float32,
        patch=(1, 2, 2),
        seed=config.seed,
    )
    return [next(maker.training(plan, step, model.num_steps)) for step in range(2 + model.num_steps)]


def add_adapter(transformer: WanTransformer3DModel, num_blocks: int) -> None:
    targets = lora_targets(num_blocks, None, ("cross_attn.k", "cross_attn.v"), allow_self_attn=False)
    transformer.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets))
    trained = {name: weight for name, weight in transformer.named_parameters() if weight.requires_grad}
    init_lora({name.replace(".default.", "."): weight for name, weight in trained.items()}, seed=0)


def encoded(encoder: UMT5EncoderModel, ids: Tensor, lengths: Tensor) -> Tensor:
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask.unsqueeze(-1)


if __name__ == "__main__":
    main()
