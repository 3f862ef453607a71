"""All that one training needs, put together: data, one stage of the row, optimizer, engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from latentloom.errors import ConfigError
from latentloom.finetune.batches import BatchPlan
from latentloom.finetune.config import FinetuneConfig
from latentloom.finetune.data import ExampleStore
from latentloom.finetune.micro_batches import MicroBatchMaker
from latentloom.finetune.objective import NoiseLevels, flow_matching_loss
from latentloom.finetune.optimizers import make_optimizer
from latentloom.finetune.plan import layer_costs, split
from latentloom.finetune.settings import noise_range
from latentloom.finetune.stages.engine import StagedEngine, StagedModule
from latentloom.finetune.stages.processes import Place
from latentloom.finetune.stages.row import (
    DTYPES,
    LayerName,
    Stage,
    build_stage,
    layer_names,
    trained_layers,
    wiring_for,
)
from latentloom.training.schedules import warmup_constant, warmup_cosine
from latentloom.wan.checkpoints import load_tokenizer, recognise
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.facts import ModelFacts


@dataclass
class Session:
    """One training of one transformer, in this process.

    Attributes:
        config: settings that fit the model.
        root, facts, expert: the checkpoint and which transformer of it.
        place: of this process.
        store: every example.
        plan: of the training batches.
        held_out: items of the evaluation loss.
        maker: of micro-batches.
        names, parts: the row, and where its stages begin.
        stage: this process's.
        optimizer, engine: of this stage.
    """

    config: FinetuneConfig
    root: Path
    facts: ModelFacts
    expert: str | None
    place: Place
    store: ExampleStore
    plan: BatchPlan
    held_out: tuple[int, ...]
    maker: MicroBatchMaker
    names: Sequence[LayerName]
    parts: Sequence[int]
    stage: Stage
    optimizer: Optimizer
    engine: StagedEngine

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.plan.steps_per_epoch * self.config.epochs
        return min(steps, self.config.max_steps or steps)

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with for its run to go on here."""
        config, plan, adapter = self.config, self.plan, self.config.adapter
        return {
            "model": self.facts.key,
            "expert": self.expert,
            "model.dtype": config.model.dtype,
            "optimizer.type": config.optimizer.type,
            "adapter.rank": adapter.rank if adapter else None,
            "adapter.targets": list(adapter.targets) if adapter else None,
            "adapter.train_blocks_range": list(adapter.train_blocks_range or ()) if adapter else None,
            "model.train_text_encoder": config.model.train_text_encoder,
            "model.text_train_blocks": config.model.text_train_blocks,
            "seed": config.seed,
            "the items": _digest(self.store, self.held_out),
            "clips per step": plan.micro_batch_size * plan.num_chunks,
            "images per step": plan.image_micro_batch_size * plan.num_chunks,
            "steps per epoch": plan.steps_per_epoch,
        }

    def set_rate(self, step: int) -> float:
        """Set the learning rates of a step; gives their share of the peak."""
        config = self.config
        if config.lr_scheduler == "cosine":
            factor = warmup_cosine(step, self.num_steps, warmup=config.warmup_steps)
        else:
            factor = warmup_constant(step, warmup=config.warmup_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        return factor

    def train_step(self, step: int) -> float:
        """Take one optimizer step; gives its mean loss."""
        torch.manual_seed(self.config.seed * 1_000_003 + step)  # stochastic rounding and the encoder's dropout
        place = self.place
        batches = self.maker.training(self.plan, step, self.num_steps, place.replica, place.num_replicas)
        return self.engine.train_step(batches)

    def evaluate(self, quantile: float) -> float:
        """The held-out items' mean loss at one noise level; every replica computes all of it."""
        batches = self.maker.evaluation(self.held_out, self.config.micro_batch_size_per_gpu, quantile)
        swap = self.stage.swap if self.config.disable_block_swap_for_eval else None
        total = 0.0
        with swap.suspended() if swap is not None else nullcontext():
            for inputs, labels in batches:  # one by one, as the last of a size may hold fewer clips
                total += len(labels[0]) * self.engine.evaluate((inputs, labels))
        return total / len(self.held_out)


def make_session(
    config: FinetuneConfig, root: Path, facts: ModelFacts, expert: str | None, place: Place, store: ExampleStore
) -> Session:
    """Read this stage's weights and make everything around them.

    Raises:
        ConfigError: nothing to train on, or more stages than layers.
    """
    found = recognise(root)
    dims = found.component("transformer", expert).derived_config
    num_text = (
        None if config.model.cache_text_embeddings else found.component("text_encoder").derived_config["num_layers"]
    )
    names = layer_names(num_text, dims["num_layers"])
    trained = trained_layers(config, names)
    parts = cut(config, root, expert, names, max(store.sizes, key=_volume))
    held_out, items = _held_out(store, config.eval_share)
    image_size = config.image_micro_batch_size_per_gpu or config.micro_batch_size_per_gpu
    num_chunks = config.gradient_accumulation_steps * place.num_replicas
    plan = BatchPlan(store.sizes, items, config.micro_batch_size_per_gpu, image_size, num_chunks, config.seed)
    if not items:
        raise ConfigError(f"{config.dataset} holds nothing to train on; add clips, or lower eval_share")
    patch = tuple(dims["patch_size"])
    maker = MicroBatchMaker(
        store=store,
        wiring=wiring_for(config, place.device),
        model=config.model,
        levels=NoiseLevels.of(config.model, *noise_range(facts, expert)),
        tokenizer=None if config.model.cache_text_embeddings else load_tokenizer(root),
        dtype=DTYPES[config.model.dtype],
        patch=(patch[0], patch[1], patch[2]),
        seed=config.seed,
    )
    stage = build_stage(config, root, expert, names, parts, place.stage, place.device)
    optimizer = make_optimizer(config.optimizer, _groups(stage), config.seed)
    if stage.swap is not None:
        stage.swap.put_away()  # DeepSpeed moves a whole stage to the device
    engine = StagedEngine(
        StagedModule(stage.layers, parts, _loss(config.model.text_anchor_weight)),
        optimizer,
        first_trained=trained.index(True),
        num_accumulated=config.gradient_accumulation_steps,
        clip=config.gradient_clipping,
    )
    if stage.swap is not None:
        stage.swap.settle()
    return Session(
        config, root, facts, expert, place, store, plan, held_out, maker, names, parts, stage, optimizer, engine
    )


def cut(
    config: FinetuneConfig, root: Path, expert: str | None, names: Sequence[LayerName], clip: ClipSize
) -> list[int]:
    """Where each stage of the row begins, and the row's end.

    Args:
        config, root, expert: what is trained.
        names: the whole row.
        clip: the largest of the data set.

    Raises:
        ConfigError: more stages than layers.
    """
    if config.pipeline_stages > len(names):
        raise ConfigError(f"pipeline_stages = {config.pipeline_stages} for a row of {len(names)} layers; use fewer")
    costs = layer_costs(config, root, expert, clip)
    ranges = split(costs, config.pipeline_stages, config.gradient_accumulation_steps)
    return [begin for begin, _ in ranges] + [len(names)]


def _groups(stage: Stage) -> Mapping[str, list[tuple[str, torch.nn.Parameter]]]:
    text = [(name, weight) for name, weight in stage.trained.items() if name.startswith("text_encoder.")]
    video = [(name, weight) for name, weight in stage.trained.items() if name.startswith("transformer.")]
    return {"te": text, "dit": video}


def _loss(anchor_weight: float):
    def loss(outputs: tuple[Tensor, ...], labels: tuple[Tensor, ...]) -> Tensor:
        velocity, *anchor = outputs
        target, weight = labels
        flow = flow_matching_loss(velocity, target, weight)
        # evaluation is of the flow alone, so that runs with different anchors compare
        return flow + anchor_weight * anchor[0].float() if anchor and torch.is_grad_enabled() else flow

    return loss


def _held_out(store: ExampleStore, share: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Items for the evaluation and for training; repeats of one item are on the same side."""
    names = sorted(set(store.names), key=_hash)
    count = round(share * len(names)) if share > 0 else 0
    chosen = set(names[: max(1, count)]) if share > 0 else set()
    held_out = {name: item for item, name in enumerate(store.names) if name in chosen}
    return tuple(held_out.values()), tuple(item for item, name in enumerate(store.names) if name not in chosen)


def _digest(store: ExampleStore, held_out: Sequence[int]) -> str:
    """Identifies the items of a run and which of them are held out."""
    items = blake2b(digest_size=8)
    for name, size in zip(store.names, store.sizes, strict=True):
        items.update(f"{name} {size}\n".encode())
    items.update(str(sorted(held_out)).encode())
    return f"{len(store)}, {items.hexdigest()}"


def _hash(name: str) -> str:
    return blake2b(name.encode()).hexdigest()


def _volume(size: ClipSize) -> int:
    return size.num_frames * size.height * size.width
