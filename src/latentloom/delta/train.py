"""Learns an adapter from cached pairs: closed-form baselines, SGD from several starts, and validation that chooses."""

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentloom.delta.alignment import fit_aligned
from latentloom.delta.baselines import RidgeFit, fit_baselines, fit_mean, fit_ridge, start_from_fit, token_centre
from latentloom.delta.config import Init, TrainConfig
from latentloom.delta.files import load_embdelta_adapter, read_adapter, save_adapter
from latentloom.delta.history import History
from latentloom.delta.loss import loss_terms
from latentloom.delta.model import DeltaConfig, EmbeddingDelta, gate_features
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pooled_delta import PromptConstants, pooled_delta
from latentloom.delta.pooling import pool
from latentloom.delta.split import Split
from latentloom.delta.validation import Score, Validation
from latentloom.runs import track
from latentloom.training import WeightAverage, load_state, save_state

_GATE_START = 4.0  # logit of the gate before training: open, so that corrections are learned from the first step


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to adjust, and what validation says of it."""

    name: str
    adapter: EmbeddingDelta
    score: Score
    seconds: float = 0.0
    history: History | None = None

    def to_json(self) -> dict[str, Any]:
        """Name, validation figures, and how long SGD took."""
        steps = {} if self.history is None else {"epochs": len(self.history), "best_epoch": self.history.best + 1}
        return {"name": self.name, **self.score.to_json(), **steps, "seconds": self.seconds}


@dataclass(frozen=True, eq=False)
class Training:
    """All candidates of a run, baselines first, and the chosen one."""

    candidates: list[Candidate]
    before: Score
    split: Split

    @property
    def chosen(self) -> Candidate:
        """The best by validation; the first of equals, so that no adapter wins where nothing helps."""
        return max(self.candidates, key=lambda candidate: candidate.score.rank(self.before))

    def named(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)


class TrainingPairs:
    """What SGD sees: the base prompts' constants; of the rewrites, pooled vectors and what the gate sees.

    Args:
        pairs: the training part of a cache.
    """

    def __init__(self, pairs: PairEmbeddings) -> None:
        self.base = PromptConstants.of(pairs.base)
        self.rewritten = pool(pairs.rewritten)
        self.rewritten_features = gate_features(pairs.rewritten)
        self.rewritten_tokens = pairs.rewritten
        numbers = {label: number for number, label in enumerate(dict.fromkeys(pairs.rewrite_labels()))}
        self.labels = torch.tensor([numbers[label] for label in pairs.rewrite_labels()], device=pairs.base.device)

    def __len__(self) -> int:
        return len(self.rewritten)


def train(cache: PairEmbeddings, config: TrainConfig, folder: Path | None = None) -> Training:
    """Fit the baselines, run SGD for every start and cap of the settings, and let validation choose.

    Args:
        cache: encoded pairs; its test part is only counted.
        config: the settings.
        folder: of checkpoints; a run that was interrupted continues from them. None keeps none.

    Raises:
        ConfigError: too few pairs for the shares of validation and test.
        CheckpointError: the folder holds the checkpoints of another run.
    """
    split = Split.of(cache, config.val_frac, config.test_frac, config.seed)
    pairs, validation = TrainingPairs(cache[split.train]), Validation(cache[split.validation])
    ridge = fit_ridge(pairs.base, pairs.rewritten, validation.base, validation.rewritten.pooled)
    candidates = baselines(pairs, ridge, validation)
    aligned = fit_aligned(pairs.base, pairs.rewritten_tokens, ridge, config.rank) if "align" in config.inits else None
    for name, init, cap in starts(config):
        adapter = start(config, init, cap, pairs, {"ridge": ridge, "align": aligned}.get(init))
        candidates.append(_train_one(name, adapter, pairs, validation, config, folder))
    return Training(candidates, validation.before, split)


def baselines(pairs: TrainingPairs, ridge: RidgeFit, validation: Validation) -> list[Candidate]:
    """The candidates that need no SGD."""
    adapters = fit_baselines(pairs.base.pooled, pairs.rewritten, ridge)
    return [Candidate(name, adapter, validation.score(adapter)) for name, adapter in adapters.items()]


def starts(config: TrainConfig) -> Iterator[tuple[str, Init, float]]:
    """Name, starting point and cap of every SGD run that the settings ask for."""
    for cap in config.caps:
        for init in config.inits:
            yield f"SGD from {init}, cap {cap:g}", init, cap


def start(
    config: TrainConfig, init: Init, cap: float, pairs: TrainingPairs, fit: RidgeFit | None = None
) -> EmbeddingDelta:
    """An adapter as SGD begins with it; the fit is what `ridge` and `align` begin with."""
    torch.manual_seed(config.seed)
    shape = DeltaConfig(
        d_model=pairs.rewritten.shape[1], rank=config.rank, cap=cap, cap_mode=config.cap_mode, orthogonal=config.orth
    )
    adapter = EmbeddingDelta(shape)
    assert adapter.gate_net is not None
    with torch.no_grad():
        adapter.centre.copy_(token_centre(pairs.base))
        adapter.gate_net.fit_scale(torch.cat([pairs.base.features, pairs.rewritten_features]))
        adapter.gate_net.out.weight.zero_()
        adapter.gate_net.out.bias.fill_(_GATE_START)
        if init == "mean":
            adapter.bias.copy_(fit_mean(pairs.base.pooled, pairs.rewritten).bias)
    if fit is not None:
        start_from_fit(adapter, fit)
    return adapter


def _train_one(
    name: str,
    adapter: EmbeddingDelta,
    pairs: TrainingPairs,
    validation: Validation,
    config: TrainConfig,
    folder: Path | None,
) -> Candidate:
    """Run SGD until validation no longer improves; gives the weights of the best epoch."""
    slug = name.replace(" ", "-").replace(",", "")
    finished = None if folder is None else folder / f"{slug}.safetensors"
    if finished is not None and finished.exists():
        return _finished(name, finished)
    # what is scored and kept is the weights' running mean, which a constant rate does not shake
    mean, best, history = deepcopy(adapter), deepcopy(adapter), History(validation.before)
    average = WeightAverage(adapter, config.ema_decay)
    parts = {"adapter": adapter, "average": average, "best": best, "history": history}
    optimizer = make_optimizer(adapter, config)
    state = None if folder is None else folder / f"{slug}.state.safetensors"
    if state is not None and state.exists():
        load_state(state, parts, [optimizer])
    started = time.perf_counter() - history.seconds
    for epoch in track(range(len(history), config.epochs), name):
        if history.num_epochs_since_best >= config.patience:
            break
        losses = train_epoch(adapter, pairs, optimizer, config, epoch, average)
        average.copy_to(mean)
        history.append(losses, validation.score(mean), time.perf_counter() - started)
        if history.num_epochs_since_best == 0:
            best.load_state_dict(mean.state_dict())
        if state is not None and len(history) % config.save_every == 0:
            save_state(state, len(history), parts, [optimizer])
    best.eval().requires_grad_(False)
    candidate = Candidate(name, best, history.best_score, history.seconds, history)
    if finished is not None:
        save_adapter(finished, best, {**candidate.to_json(), "history": history.to_json()})
    return candidate


def train_epoch(
    adapter: EmbeddingDelta,
    pairs: TrainingPairs,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    epoch: int,
    average: WeightAverage | None = None,
    pad_to: int | None = None,
) -> Tensor:
    """One pass over the pairs in an order that the seed and the epoch decide; gives the mean of the loss terms.

    Args:
        adapter: what is trained.
        pairs: the training pairs.
        optimizer: from `make_optimizer`.
        config: the settings.
        epoch: from 0.
        average: follows the adapter's weights.
        pad_to: positions of the `padded` method.
    """
    assert adapter.gate_net is not None
    generator = torch.Generator().manual_seed((config.seed << 24) + epoch)
    order = torch.randperm(len(pairs), generator=generator).to(pairs.rewritten.device)
    totals, parts = [], order.split(config.batch_size)
    for rows, base in zip(parts, pairs.base.batches(parts), strict=True):
        labels = pairs.labels[rows]
        terms = loss_terms(
            base.pooled,
            pairs.rewritten.index_select(0, rows),
            pooled_delta(adapter, base, config.method, pad_to),
            adapter.gate_net.logits(base.features),
            adapter.gate_net.logits(pairs.rewritten_features.index_select(0, rows)),
            labels.unsqueeze(0) == labels.unsqueeze(1),
            config.tau,
        )
        optimizer.zero_grad(set_to_none=True)
        terms.total(config).backward()
        optimizer.step()
        if average is not None:
            average.update(adapter)
        totals.append(terms.detached() * len(rows))
    return torch.stack(totals).sum(dim=0) / len(pairs)


def make_optimizer(adapter: EmbeddingDelta, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, the gate at a rate of its own."""
    assert adapter.gate_net is not None
    correction = [adapter.down, adapter.up, adapter.bias]
    gate = list(adapter.gate_net.parameters())
    return torch.optim.Adam(
        [{"params": correction}, {"params": gate, "lr": config.lr * config.gate_lr_mult}], lr=config.lr, fused=True
    )


def _finished(name: str, path: Path) -> Candidate:
    record = read_adapter(path).record or {}
    history = History.from_json(record["history"])
    return Candidate(name, load_embdelta_adapter(path), history.best_score, history.seconds, history)
