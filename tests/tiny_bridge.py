"""Tiny trainings of a bridge, for tests and for the processes that they spawn."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentloom.bridge.backbone import load_backbone
from latentloom.bridge.checkpoint import DTYPES
from latentloom.bridge.config import BridgeConfig
from latentloom.bridge.features import pooled_features
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.sharding import shard_bridge
from latentloom.bridge.train import BridgeTraining, freeze_unused
from latentloom.storage import write_json

CPU = torch.device("cpu")
WORDS = [
    "the",
    "a",
    "small",
    "red",
    "blue",
    "bird",
    "sings",
    "over",
    "tall",
    "green",
    "trees",
    "and",
    "old",
    "quiet",
    "houses",
    "near",
    "warm",
    "rivers",
]


def some_pairs(num: int, dim: int, seed: int = 0) -> PairSet:
    """Texts of 2 to 9 words with random vectors."""
    generator = np.random.default_rng(seed)
    texts = [" ".join(generator.choice(WORDS, generator.integers(2, 10))) for _ in range(num)]
    vectors = generator.normal(0.3, 1.0, (num, dim)).astype(np.float32)
    return PairSet(texts, vectors, f"random pairs {num} {dim} {seed}")


def make_training(settings: Mapping[str, Any], folder: Path) -> BridgeTraining:
    """A training that is the same whenever and wherever it is made."""
    config = BridgeConfig.model_validate(settings)
    backbone = load_backbone(config.model, device=CPU, dtype=DTYPES[config.training.dtype])
    torch.manual_seed(config.training.seed)
    pairs = some_pairs(50, 12)
    bridge = LatentBridge(backbone, config.model, pairs.dim)
    if config.training.parallel == "fsdp":
        freeze_unused(bridge, config)
        shard_bridge(bridge, CPU)
    ids = bridge.tokenize(pairs.texts)
    vectors = pairs.load(range(len(pairs)))[1]
    bridge.standardizer.fit(vectors.mean(0), vectors.std(0))
    features = None
    if config.training.cache_features and config.training.task != "l2t":
        features = pooled_features(bridge, ids, folder)
        bridge.text_to_latent.features.fit(*features.moments())
    return BridgeTraining(bridge, ids, pairs, features, config)


def losses(settings: Mapping[str, Any], folder: Path, num_steps: int = 4) -> tuple[list[dict[str, float]], list[float]]:
    """The measures of every step, and the sums of all trained weights afterwards."""
    training = make_training(settings, folder)
    measures = [training.step(step, measures=True) for step in range(num_steps)]
    weights = [float(weight.double().sum()) for weight in training.bridge.parameters() if weight.requires_grad]
    return measures, weights


def train(rank: int, all_settings: list[Mapping[str, Any]], folder: str) -> None:
    """Train with each settings in turn; the first process leaves what `losses` gives."""
    found = [losses(settings, Path(folder) / f"rank{rank}") for settings in all_settings]
    if rank == 0:
        write_json(Path(folder) / "found.json", found)


def read_found(folder: Path) -> list[tuple[list[dict[str, float]], list[float]]]:
    """What `train` left."""
    return json.loads((folder / "found.json").read_text())
