"""The frozen encoder of frames: from a file, or an autoencoder that is trained on the run's own frames first."""

from pathlib import Path

import torch

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData, frame_data
from latentloom.drifting.config import MaeConfig
from latentloom.drifting.encoders import FeatureEncoder, mae_encoder
from latentloom.drifting.frozen_encoder import mae_batch_size
from latentloom.errors import ConfigError


def make_frame_encoder(config: ClipConfig, data: ClipData, folder: Path, device: torch.device) -> FeatureEncoder | None:
    """The encoder of the settings; an autoencoder that is not given is trained in `folder` first.

    None where nothing compares the features of frames.

    Raises:
        ConfigError: an autoencoder of other channels.
        FileError: no such file.
    """
    if not compares_frames(config):
        return None
    path = config.feature_checkpoint
    if path is None:
        from latentloom.drifting.train_mae import train_mae

        path = train_mae(frame_data(data), frame_mae_config(config, data), folder)
    encoder = mae_encoder(path)
    channels = data.train.shape[0]
    if encoder.channels != channels:
        raise ConfigError(
            f"feature_checkpoint = {str(path)!r} reads {encoder.channels} channels, and the clips have {channels}; "
            "give an autoencoder that was trained on such frames"
        )
    return encoder.to(device)


def compares_frames(config: ClipConfig) -> bool:
    """True where the loss compares features of frames."""
    return config.objective == "drift" and config.feature_loss_weight > 0


def frame_mae_config(config: ClipConfig, data: ClipData) -> MaeConfig:
    """The settings of the autoencoder that a run trains on its own frames."""
    return MaeConfig(
        dataset="shards",
        data_root=config.data_root,
        input_space=data.space,
        split_seed=config.split_seed,
        steps=config.feature_mae_steps,
        batch_size=mae_batch_size(),
        device=config.device,
    )
