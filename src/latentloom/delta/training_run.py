"""A training as a run on disk: settings, record, checkpoints, curves, the adapter in both formats, and a page."""

import hashlib
from pathlib import Path
from typing import Any

from latentloom.delta.baselines import BASELINES
from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.config import TrainConfig
from latentloom.delta.experiment import delta_trainings
from latentloom.delta.files import ADAPTER_NAME, save_adapter
from latentloom.delta.pooling import pool
from latentloom.delta.split import Split
from latentloom.delta.train import Training, train
from latentloom.delta.training_report import write_training_report
from latentloom.errors import ConfigError
from latentloom.runs import RunFolder, to_toml
from latentloom.storage import write_json

SUFFIXES = (".safetensors", ".pt")


def run_training(cache: PairEmbeddings, config: TrainConfig, out_dir: Path, data: str) -> Training:
    """Train and leave in `out_dir` everything there is to know; an interrupted run continues where it stopped.

    Args:
        cache: encoded pairs.
        config: the settings.
        out_dir: the run folder: `embdelta_adapter.safetensors` and `.pt`, `metrics.json`, `report.html`, `split.json`.
        data: which cache, in words.

    Raises:
        ConfigError: `out_dir` holds a run on another cache or with other settings, or there are too few pairs.
        FileError: `out_dir` cannot be written to.
    """
    digest = cache_digest(cache)
    _refuse_other_run(out_dir, config, digest)
    # refuses too few pairs before the folder belongs to settings that cannot run
    split = Split.of(cache, config.val_frac, config.test_frac, config.seed)
    facts = delta_trainings(cache, split, config, data)
    with RunFolder.at(out_dir, config, data=data, trainings=facts) as run:
        write_json(out_dir / "cache.json", {"digest": digest, "encoder": cache.encoder, "num_pairs": len(cache)})
        training = train(cache, config, run.checkpoints)
        parts = {"train": split.train, "validation": split.validation, "test": split.test}
        write_json(out_dir / "split.json", parts)
        record = training_record(training, config, cache, digest)
        for suffix in SUFFIXES:
            save_adapter(out_dir / f"{ADAPTER_NAME}{suffix}", training.chosen.adapter, {**record, "split": parts})
        write_json(out_dir / "metrics.json", record)
        _write_curves(run, training)
        write_training_report(training, config, out_dir, data)
        _state_throughput(run, training)
        run.finish(training.chosen.to_json(), decision=decision(training))
    return training


def training_record(training: Training, config: TrainConfig, cache: PairEmbeddings, digest: str) -> dict[str, Any]:
    """How an adapter came about, as JSON values."""
    return {
        "chosen": training.chosen.name,
        "decision": decision(training),
        "settings": config.model_dump(mode="json"),
        "cache": {"digest": digest, "encoder": cache.encoder, "num_pairs": len(cache)},
        "validation": {"before": training.before.to_json(), "chosen": training.chosen.score.to_json()},
        "candidates": [candidate.to_json() for candidate in training.candidates],
    }


def decision(training: Training) -> str:
    """What validation chose and why, in one or two sentences."""
    chosen, before = training.chosen, training.before
    text = (
        f"{chosen.name}: validation cosine {chosen.score.cosine:.3f} (without {before.cosine:.3f}), R@1 "
        f"{chosen.score.recall_at_1:.3f} (without {before.recall_at_1:.3f}), drift {chosen.score.drift:.4f}."
    )
    if chosen.name in BASELINES:
        return f"A baseline wins. {text} No trained adapter within the constraints came nearer to the rewrites."
    nearer = [item.name for item in training.candidates if item.score.cosine > chosen.score.cosine]
    if nearer:
        text += f" Nearer, but out for lost retrieval or drift: {', '.join(nearer)}."
    return text


def cache_digest(cache: PairEmbeddings) -> str:
    """Sixteen hex digits that tell one cache's contents from another's."""
    digest = hashlib.sha256()
    for side in (cache.base, cache.rewritten):
        digest.update(side.lengths.cpu().numpy().tobytes())
        digest.update(pool(side).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _refuse_other_run(out_dir: Path, config: TrainConfig, digest: str) -> None:
    settings, cache = out_dir / "config.toml", out_dir / "cache.json"
    if settings.exists() and settings.read_text(encoding="utf-8") != to_toml(config):
        raise ConfigError(f"{out_dir} holds a run with other settings; give another --out_dir, or delete it")
    if cache.exists() and f'"{digest}"' not in cache.read_text(encoding="utf-8"):
        raise ConfigError(f"{out_dir} holds a run on another cache; give another --out_dir, or delete it")


def _state_throughput(run: RunFolder, training: Training) -> None:
    """Pairs per second of SGD, over all sittings of an interrupted run."""
    histories = [candidate.history for candidate in training.candidates if candidate.history is not None]
    seconds = sum(history.seconds for history in histories)
    if seconds > 0:
        num_epochs = sum(len(history) for history in histories)
        run.state_throughput(num_epochs * len(training.split.train) / seconds, "pairs")


def _write_curves(run: RunFolder, training: Training) -> None:
    writer = run.tensorboard()
    for candidate in training.candidates:
        if candidate.history is None:
            continue
        curves = candidate.history.to_json()
        for epoch, row in enumerate(curves["rows"]):
            for name, value in zip(curves["columns"], row, strict=True):
                writer.add_scalar(f"{candidate.name}/{name}", value, epoch)
