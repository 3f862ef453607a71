"""What the processes of test_train_mae do; spawned processes import it."""

from pathlib import Path

import torch

from latentloom.drifting.config import MaeConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.train_mae import train_mae


def train(rank: int, settings: dict[str, object], folder: str) -> None:
    """Train with these settings; every process names the same folder."""
    config = MaeConfig.model_validate(settings)
    train_mae(load_data(config, torch.device("cpu")), config, Path(folder))
