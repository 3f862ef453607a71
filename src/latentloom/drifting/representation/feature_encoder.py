"""A feature encoder from whatever kind of file or folder the user names."""

from pathlib import Path

from latentloom.drifting.encoders import FeatureEncoder, mae_encoder, resnet_encoder
from latentloom.errors import ConfigError


def open_encoder(path: Path, channels: int) -> FeatureEncoder:
    """The encoder of a masked autoencoder's file, or a ResNet's folder.

    Args:
        path: a .safetensors file of `latentloom drift train-mae`, or a folder in transformers' layout.
        channels: of the samples.

    Raises:
        FileError: neither of both.
        CheckpointError: damaged, or of another kind.
        ConfigError: it reads another number of channels.
    """
    encoder = resnet_encoder(path, channels, seed=0) if path.is_dir() else mae_encoder(path)
    if encoder.channels != channels:
        raise ConfigError(
            f"{path} reads {encoder.channels} channels, and the samples have {channels}; "
            "give an encoder that was made for such samples"
        )
    return encoder
