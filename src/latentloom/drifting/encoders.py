"""Frozen networks whose feature maps drifting compares: a ResNet, or the encoder of a masked autoencoder."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from latentloom.drifting.mae import load_mae
from latentloom.errors import CheckpointError, FileError, ShapeError

if TYPE_CHECKING:
    from transformers import ResNetConfig

SMALLEST_SIDE = 32
"""A ResNet's stem keeps a quarter of the resolution: smaller images are enlarged to this side first."""

_RANDOM_WIDTHS = (32, 64, 128, 256)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureEncoder(nn.Module):
    """A frozen network that gives its maps, fine to coarse; gradients reach the samples and never the weights.

    Args:
        network: takes samples [B, C, H, W] and gives a list of maps; from now on it is frozen and stays in eval mode.
        channels: C, as the network takes it.
    """

    def __init__(self, network: nn.Module, channels: int) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.channels = channels

    def forward(self, samples: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        """The maps of every sample.

        Raises:
            ShapeError: samples of another number of channels.
        """
        if samples.shape[1] != self.channels:
            raise ShapeError(
                f"samples of {samples.shape[1]} channels for a feature encoder of {self.channels}; "
                "give the encoder that was made for them"
            )
        return self.network(samples)

    def train(self, mode: bool = True) -> "FeatureEncoder":
        """Stay in eval mode, whatever the module around it does."""
        super().train(False)
        return self


def resnet_encoder(folder: Path | str | None, channels: int, seed: int) -> FeatureEncoder:
    """A ResNet that is read from a folder, or a small one with random weights.

    A ResNet from a folder takes RGB pixels from -1 to 1, and grey ones as RGB; it sees them normalised as ImageNet is.
    Nothing is downloaded.

    Args:
        folder: in transformers' layout (config.json and model.safetensors), such as a copy of microsoft/resnet-18;
            None for random weights.
        channels: of the samples.
        seed: of the random weights.

    Raises:
        FileError: no such folder.
        CheckpointError: it holds no ResNet, or the samples are neither RGB nor grey.
    """
    if folder is not None:
        if channels not in (1, 3):
            raise CheckpointError(
                f"{folder} holds a ResNet for RGB; samples of {channels} channels need another encoder"
            )
        return FeatureEncoder(_ResNetMaps(_read_resnet(Path(folder)), is_trained=True), channels)
    from transformers import ResNetBackbone, ResNetConfig  # seconds to import, and autoencoders do without

    config = ResNetConfig(
        num_channels=channels,
        embedding_size=_RANDOM_WIDTHS[0],
        hidden_sizes=list(_RANDOM_WIDTHS),
        depths=[2] * len(_RANDOM_WIDTHS),
        layer_type="basic",
    )
    _ask_for_all_stages(config)
    with torch.random.fork_rng(devices=[]):  # transformers draws weights from the global generator
        torch.manual_seed(seed)
        backbone = ResNetBackbone(config)
    return FeatureEncoder(_ResNetMaps(backbone, is_trained=False), channels)


def mae_encoder(path: Path | str) -> FeatureEncoder:
    """The encoder of a masked autoencoder that `latentloom drift train-mae` wrote.

    Raises:
        FileError: no such file, or a file of something else.
        CheckpointError: tensors are missing or too many.
    """
    mae = load_mae(path)
    return FeatureEncoder(mae.encoder, mae.shape.channels)


class _ResNetMaps(nn.Module):
    """The stages of a ResNet's backbone, for samples of any size.

    Args:
        backbone: gives the maps of all stages.
        is_trained: whether it expects pixels as ImageNet's training had them.
    """

    def __init__(self, backbone: nn.Module, *, is_trained: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_trained = is_trained
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(_IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, samples: Float[Tensor, "B C H W"]) -> list[Float[Tensor, "B _ _ _"]]:
        if self.is_trained:
            samples = ((samples + 1) / 2 - self.mean) / self.deviation  # one grey channel becomes three here
        smaller = min(samples.shape[2:])
        if smaller < SMALLEST_SIDE:
            size = [-(-side * SMALLEST_SIDE // smaller) for side in samples.shape[2:]]
            samples = F.interpolate(samples, size=size, mode="bilinear", align_corners=False)
        return list(self.backbone(samples).feature_maps)


def _read_resnet(folder: Path) -> nn.Module:
    from transformers import ResNetBackbone, ResNetConfig

    if not (folder / "config.json").is_file():
        raise FileError(f"{folder} is no folder with a config.json; give a ResNet in transformers' layout")
    refusal = f"{folder} holds no ResNet that can be read"
    try:
        config = ResNetConfig.from_pretrained(folder, local_files_only=True)
        _ask_for_all_stages(config)
        loaded: Any = ResNetBackbone.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{refusal}: {' '.join(str(error).split())[:200]}") from error
    backbone, report = loaded
    if report["missing_keys"]:
        raise CheckpointError(f"{refusal}: {len(report['missing_keys'])} of its tensors are missing")
    if config.model_type != "resnet" or config.num_channels != 3:
        raise CheckpointError(f"{refusal}: it is a {config.model_type} of {config.num_channels} channels, not RGB")
    return backbone


def _ask_for_all_stages(config: "ResNetConfig") -> None:
    # by default a backbone gives its last stage alone
    config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
