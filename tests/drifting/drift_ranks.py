"""What the processes of test_train_refiner do; spawned processes import it."""

from pathlib import Path

import torch

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.frozen_encoder import make_encoder
from latentloom.drifting.train_images import train_refiner


def train(rank: int, settings: dict[str, object], folder: str) -> None:
    """Train with each objective; every process names the same folder."""
    for objective in ("drift", "mse"):
        config = DriftConfig.model_validate({**settings, "objective": objective})
        data, path = load_data(config, torch.device("cpu")), Path(folder) / objective
        encoder = make_encoder(config, data, path, torch.device("cpu"))
        train_refiner(data, encoder, config, 0, path, torch.device("cpu"))
