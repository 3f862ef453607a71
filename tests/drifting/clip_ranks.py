"""What the processes of test_clip_train do; spawned processes import it."""

from pathlib import Path

import torch

from latentloom.drifting.clips.classes import make_classes
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import load_clips
from latentloom.drifting.clips.fitted_warper import make_keyframes
from latentloom.drifting.clips.train import train_clip_refiner

CPU = torch.device("cpu")


def train(rank: int, settings: dict[str, object], folder: str) -> None:
    """Train with each objective; every process names the same folder."""
    for objective in ("drift", "mse"):
        config, path = ClipConfig.model_validate({**settings, "objective": objective}), Path(folder) / objective
        classes, data = make_classes(config, load_clips(config, CPU), Path(folder) / "classes")
        keyframes = make_keyframes(config, data, Path(folder) / "interpolation", CPU)
        train_clip_refiner(data, classes, keyframes, None, config, 0, path, CPU)
