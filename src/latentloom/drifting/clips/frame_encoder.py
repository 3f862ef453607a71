"""The frozen encoder of frames: from a file, or an autoencoder that is trained on the run's own frames first."""

from pathlib import Path

import torch

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData, frame_data
from latentloom.drifting.config import MaeConfig
from latentloom.drifting.encoders import FeatureEncoder, mae_encoder
from latentloom.drifting.frozen_encoder import mae_batch_size
from latentloom.errors import ConfigError
from latentloom.storage.modules import read_origin

#: What says which clips of some shards are held out.
_SPLIT = ("held_out_root", "held_out_share", "split_seed")


def make_frame_encoder(config: ClipConfig, data: ClipData, folder: Path, device: torch.device) -> FeatureEncoder | None:
    """The encoder of the settings; an autoencoder that is not given is trained in `folder` first.

    None where nothing compares the features of frames.

    Raises:
        ConfigError: an autoencoder of other channels, or one that may have seen the held-out clips.
        FileError: no such file.
    """
    if not compares_frames(config):
        return None
    path = config.feature_checkpoint
    if path is not None:
        _refuse_other_split(path, config)
    else:
        from latentloom.drifting.clips.pixels import vae_root  # the VAE's library takes seconds to import
        from latentloom.drifting.train_mae import train_mae

        path = train_mae(frame_data(data, vae_root(config)), frame_mae_config(config, data), folder)
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
    from latentloom.drifting.clips.pixels import vae_root  # the VAE's library takes seconds to import

    return MaeConfig(
        dataset="shards",
        data_root=config.data_root,
        held_out_root=config.held_out_root,
        held_out_share=config.held_out_share,
        split_seed=config.split_seed,
        input_space=data.space,
        vae_root=vae_root(config) if data.space == "latent" else None,
        steps=config.feature_mae_steps,
        batch_size=mae_batch_size(),
        device=config.device,
    )


def _refuse_other_split(path: Path, config: ClipConfig) -> None:
    """An autoencoder of these very shards must not have seen the clips that this run holds out.

    Raises:
        ConfigError: it may have.
        FileError: no such file.
    """
    theirs = (read_origin(path).record or {}).get("settings", {})
    ours = config.model_dump(mode="json", include={"data_root", *_SPLIT})
    if theirs.get("dataset") != "shards":
        return
    if ours["held_out_root"] is not None:
        if theirs.get("data_root") == ours["held_out_root"]:
            raise ConfigError(
                f"feature_checkpoint = {str(path)!r} was trained on the held-out clips in {config.held_out_root}; give "
                "one that was trained on others"
            )
        return
    if theirs.get("data_root") != ours["data_root"]:
        return
    for name in _SPLIT:
        if theirs.get(name) != ours[name]:
            raise ConfigError(
                f"feature_checkpoint = {str(path)!r} was trained with {name} = {theirs.get(name)}, this run has "
                f"{ours[name]}, so it may have seen clips that are held out here; give both the same"
            )
