"""The frozen feature encoder of a run: from a file, or an autoencoder that is trained on the run's own images first."""

from pathlib import Path

import torch

from latentloom.drifting.config import DataConfig, DriftConfig, MaeConfig
from latentloom.drifting.data import ImageData
from latentloom.drifting.encoders import FeatureEncoder, mae_encoder, resnet_encoder
from latentloom.errors import ConfigError
from latentloom.runs.claims import file_digest
from latentloom.runs.process_group import num_processes
from latentloom.storage.modules import read_origin

#: Images per step of an autoencoder that is trained here, over all processes: it must not depend on their number.
MAE_BATCH = 128
_SPLIT = ("held_out_share", "validation_share", "split_seed")


def make_encoder(config: DriftConfig, data: ImageData, folder: Path, device: torch.device) -> FeatureEncoder | None:
    """The encoder of the settings; an autoencoder that is not given is trained in `folder` first.

    None where nothing compares features. A ResNet without a folder has random weights, drawn from `split_seed`.

    Raises:
        ConfigError: an autoencoder of other channels, or of another split of these images.
        FileError: no such file or folder.
    """
    if not _compares_features(config):
        return None
    channels = data.train.shape[0]
    if config.encoder_kind == "resnet":
        return resnet_encoder(config.feature_checkpoint, channels, seed=config.split_seed).to(device)
    path = config.feature_checkpoint
    if path is None:
        path = _train_autoencoder(config, data, folder)
    else:
        _refuse_other_split(path, config)
    encoder = mae_encoder(path)
    if encoder.channels != channels:
        raise ConfigError(
            f"feature_checkpoint = {str(path)!r} reads {encoder.channels} channels, and the images have {channels}; "
            "give an autoencoder that was trained on such images"
        )
    return encoder.to(device)


def trains_encoder(config: DriftConfig) -> bool:
    """True where the run trains its encoder itself."""
    return _compares_features(config) and config.encoder_kind != "resnet" and config.feature_checkpoint is None


def encoder_digest(config: DriftConfig) -> str | None:
    """Sixteen hex digits that tell a checkpoint's weights from others at the same place; None without a checkpoint."""
    path = config.feature_checkpoint
    if path is None or not _compares_features(config):
        return None
    path = path / "model.safetensors" if config.encoder_kind == "resnet" else path
    return file_digest(path)


def mae_batch_size() -> int:
    """Images of each process in a step of an autoencoder that a run trains itself.

    Raises:
        ConfigError: a number of processes that cannot share the step.
    """
    count = num_processes()
    if MAE_BATCH % count:
        raise ConfigError(
            f"{count} processes cannot share the {MAE_BATCH} images of an autoencoder's step evenly; train it with "
            "`latentloom drift train-mae` first, and give feature_checkpoint"
        )
    return MAE_BATCH // count


def _compares_features(config: DriftConfig) -> bool:
    return config.objective == "drift" and config.feature_loss_weight > 0


def _train_autoencoder(config: DriftConfig, data: ImageData, folder: Path) -> Path:
    from latentloom.drifting.train_mae import train_mae

    of_data = {name: getattr(config, name) for name in DataConfig.model_fields}
    settings = MaeConfig(**of_data, steps=config.feature_mae_steps, batch_size=mae_batch_size(), device=config.device)
    return train_mae(data, settings, folder)


def _refuse_other_split(path: Path, config: DriftConfig) -> None:
    """An autoencoder of these very images must not have seen those that this run holds out."""
    settings = (read_origin(path).record or {}).get("settings", {})
    here = config.model_dump(mode="json", include={"dataset", "data_root", *_SPLIT})
    if any(settings.get(name) != here[name] for name in ("dataset", "data_root")):
        return
    for name in _SPLIT:
        if settings.get(name) != here[name]:
            raise ConfigError(
                f"feature_checkpoint = {str(path)!r} was trained with {name} = {settings.get(name)}, this run has "
                f"{here[name]}, so it may have seen images that are held out here; give both the same"
            )
