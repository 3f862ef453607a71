"""A run of `latentloom bridge train`: data, features, training, exports, scores and a page."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from latentloom.bridge import experiment
from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.checkpoint import DTYPES, export_bridge, export_file, load_bridge
from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.evaluate import evaluate_bridge
from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.features import PooledFeatures, features_are_fixed, pooled_features
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pretrained_folder import local_copy
from latentloom.bridge.report import write_bridge_report
from latentloom.bridge.run_data import RunPairs, run_encoder_name, run_pairs
from latentloom.bridge.sentence_encoders import load_sentence_encoder
from latentloom.bridge.sharding import is_sharded, require_shardable, shard_bridge
from latentloom.bridge.start import start_from
from latentloom.bridge.tracking import Tracker
from latentloom.bridge.train import CURVE_NAME, STATE_NAME, BridgeTraining, freeze_unused
from latentloom.errors import ConfigError
from latentloom.runs import RunFolder, process_rank, track
from latentloom.runs.claims import claim_folder, file_digest, samples_digest
from latentloom.runs.process_group import gathered, joined_processes, num_processes, wait_for_all
from latentloom.storage import write_json
from latentloom.storage.atomic import disk_failures_said
from latentloom.training import Curve

logger = logging.getLogger(__name__)

#: Texts whose features tell the mean and deviation where features change and are not kept.
NUM_SAMPLED = 2048

Made = TypeVar("Made")


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: of the run.
        export: the trained parts.
        scores: on held-out pairs; None where `evaluation.num_pairs` is 0.
    """

    folder: Path
    export: Path
    scores: BridgeScores | None


def train_bridge(config: BridgeConfig) -> Outcome | None:
    """Train a bridge, score it on held-out pairs, and leave everything in `logging.save_dir/logging.run_name`.

    Under torchrun every process calls it; the first one writes, and the others are given None. An interrupted run
    goes on exactly where it stopped.

    Raises:
        LatentLoomError: the user's mistakes, of whichever kind.
    """
    folder = config.logging.save_dir / config.logging.run_name
    with joined_processes(config.training.device) as device:
        if config.training.parallel == "fsdp":
            require_shardable(config)
        pairs = _first_process_first(lambda: run_pairs(config))
        bridge = _make_bridge(config, device, pairs.train.dim)
        bridge.task, bridge.vector_encoder = config.training.task, pairs.encoder
        ids = bridge.tokenize(pairs.train.texts)
        claim_folder(folder, _identity(config, pairs, bridge))
        with disk_failures_said(folder):
            features = _prepare(bridge, ids, pairs, config)
            training = BridgeTraining(bridge, ids, pairs.train, features, config)
            if process_rank() != 0:
                _train(training, folder, config, None)
                return None
            facts = experiment.bridge_trainings(config, bridge, pairs, training.rows_per_step)
            seeds = [config.training.seed]
            with RunFolder.at(folder, config, data=pairs.description, seeds=seeds, trainings=facts) as run:
                return _run(run, training, pairs, features, config)


def _make_bridge(config: BridgeConfig, device: torch.device, latent_dim: int) -> LatentBridge:
    """The bridge at its start; one that is sharded comes by way of the CPU, and never lies whole on a device."""
    shards = config.training.parallel == "fsdp"
    place = torch.device("cpu") if shards else device
    backbone = load_backbone(config.model, device=place, dtype=DTYPES[config.training.dtype])
    torch.manual_seed(config.training.seed)
    bridge = LatentBridge(backbone, config.model, latent_dim)
    freeze_unused(bridge, config)
    if config.training.init_from is not None:
        start_from(bridge, config.training.init_from)
    if shards:
        shard_bridge(bridge, device)
    return bridge


def _run(
    run: RunFolder, training: BridgeTraining, pairs: RunPairs, features: PooledFeatures | None, config: BridgeConfig
) -> Outcome:
    started = time.monotonic()
    with Tracker(run, config) as tracker:
        num_done = _train(training, run.path, config, tracker)
    seconds = time.monotonic() - started
    if num_done:
        run.state_throughput(num_done * training.rows_per_step / seconds, "pairs")
    export = run.path / f"checkpoint_step_{config.training.num_steps}.safetensors"
    results = _facts(training, features, seconds) | {"export": export.name}
    scores = None
    if config.evaluation.num_pairs:
        scores = _score(_whole_bridge(training.bridge, export, config), pairs, features, config)
        results |= {"scores": scores.to_json()}
        write_json(run.path / "metrics.json", scores.to_json())
    write_bridge_report(run.path, config, scores, pairs.description)
    run.finish(results)
    return Outcome(run.path, export, scores)


def _train(training: BridgeTraining, folder: Path, config: BridgeConfig, tracker: Tracker | None) -> int:
    """Make the steps that are left; gives their number. The first process alone writes what all of them give."""
    state, settings, num_steps = folder / STATE_NAME, config.logging, config.training.num_steps
    first = training.load(state) if state.exists() else 0
    # no process goes on before all have read the state, which the first one replaces
    found = gathered(torch.tensor([first], device=training.bridge.device)).tolist()
    if len(set(found)) > 1:
        raise ConfigError(
            f"the processes find {folder} after {found} steps; logging.save_dir must be a folder that all of them share"
        )
    curve = Curve(folder / CURVE_NAME, first) if tracker is not None else None
    for step in track(range(first, num_steps), f"training {config.training.task}"):
        started, ends = time.monotonic(), step + 1 == num_steps
        logs, saves = step % settings.log_every == 0 or ends, (step + 1) % settings.save_every == 0 or ends
        measures = training.step(step, logs or saves)
        if logs and curve is not None and tracker is not None:
            measures |= {"step_seconds": round(time.monotonic() - started, 4)}
            curve.append(step, **measures)
            tracker.log(step, measures)
        if saves:
            # the state last: a run that is killed between the two makes the export again
            export_bridge(folder, step + 1, training.bridge, _about(config, step + 1))
            training.save(state, step + 1)
    training.bridge.eval()
    return num_steps - first


def _prepare(
    bridge: LatentBridge, ids: list[list[int]], pairs: RunPairs, config: BridgeConfig
) -> PooledFeatures | None:
    """Fit the standardizers; the pooled features of all texts, where they never change and are wanted.

    What was trained before keeps the standardizers that it was trained with.
    """
    if not bridge.standardizer.is_fitted:
        bridge.standardizer.fit(*pairs.train.moments())
    if config.training.task == "l2t":
        return None
    standardizer = bridge.text_to_latent.features
    if config.training.cache_features and features_are_fixed(bridge):
        cache = config.logging.save_dir / "cache"
        # sharded layers compute in all processes together
        make = _first_process_first if not is_sharded(bridge) else _every_process
        features = make(lambda: pooled_features(bridge, ids, cache))
        if not standardizer.is_fitted:
            standardizer.fit(*features.moments())
        return features
    if standardizer.is_fitted:
        return None
    step = max(1, len(ids) // NUM_SAMPLED)
    sampled = bridge.pool_all(ids[::step])
    standardizer.fit(sampled.mean(0), sampled.std(0, correction=0))
    return None


def _whole_bridge(bridge: LatentBridge, export: Path, config: BridgeConfig) -> LatentBridge:
    """The bridge to score in this process alone: of a sharded one, what it was exported to, beside its share here."""
    if not is_sharded(bridge):
        return bridge
    return load_bridge(
        export,
        device=str(bridge.device),
        dtype=config.training.dtype,
        local_dir=local_copy(config.model),
    )


def _score(
    bridge: LatentBridge, pairs: RunPairs, features: PooledFeatures | None, config: BridgeConfig
) -> BridgeScores:
    name = run_encoder_name(config)
    encoder = load_sentence_encoder(name, config.training.device) if name is not None else None
    return evaluate_bridge(
        bridge,
        pairs.held_out,
        train=pairs.train,
        encoder=encoder,
        config=config.evaluation,
        task=config.training.task,
        seed=config.training.seed,
        train_features=np.asarray(features.values) if features is not None else None,
    )


def _first_process_first(make: Callable[[], Made]) -> Made:
    """What `make` gives in every process; the first one makes the files that the others then find."""
    made = make() if process_rank() == 0 else None
    wait_for_all()
    return make() if made is None else made


def _every_process(make: Callable[[], Made]) -> Made:
    """What `make` gives in every process, when all have begun."""
    wait_for_all()
    return make()


def _identity(config: BridgeConfig, pairs: RunPairs, bridge: LatentBridge) -> dict[str, Any]:
    """What makes a run the one it is: settings that its weights depend on, its data, backbone and batch."""
    settings = config.model_dump(mode="json", include={"model", "training"})
    del settings["training"]["device"], settings["model"]["pretrained_local_dir"]
    flat = {f"{section}.{name}": value for section, values in settings.items() for name, value in values.items()}
    if config.training.init_from is not None:
        flat["training.init_from"] = file_digest(export_file(config.training.init_from))
    backbone = f"{bridge.backbone.name} {bridge.backbone.fingerprint}"
    return {**flat, "data": samples_digest(pairs.train.fingerprint), "backbone": backbone, "processes": num_processes()}


def _facts(training: BridgeTraining, features: PooledFeatures | None, seconds: float) -> dict[str, Any]:
    bridge = training.bridge
    counts = {
        "prefix": bridge.latent_prefix,
        "head": bridge.text_to_latent,
        f"backbone ({bridge.backbone.name})": bridge.network,
    }
    return {
        "what": experiment.summary(training.config, bridge),
        **{f"weights trained, {name}": _num_trained(module) for name, module in counts.items()},
        "weights of the backbone": sum(weight.numel() for weight in bridge.network.parameters()),
        "layers pooled for text -> vector": list(bridge.layers),
        "features of the texts": "pooled once and kept" if features is not None else "pooled in every step",
        "rows per step": training.rows_per_step,
        "processes": num_processes(),
        "seconds of training in this sitting": round(seconds, 1),
    }


def _num_trained(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters() if weight.requires_grad)


def _about(config: BridgeConfig, step: int) -> dict[str, Any]:
    return {"steps": step, **config.training.model_dump(mode="json", exclude={"device"})}
