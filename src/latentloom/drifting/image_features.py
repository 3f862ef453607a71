"""The features of images that drifting compares: those of a frozen encoder's maps, and the images themselves."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.drifting.config import FieldConfig
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import VANILLA, feature_groups


class ImageFeatures:
    """Gives the features that the settings name.

    Args:
        config: the settings.
        encoder: gives feature maps of images; None where only the images themselves are compared.
    """

    def __init__(self, config: FieldConfig, encoder: FeatureEncoder | None) -> None:
        self.config = config
        self.encoder = encoder

    def __call__(self, images: Float[Tensor, "N C H W"]) -> dict[str, Float[Tensor, "N _ _"]]:
        """The features by name, each [N, L, S]: S numbers at each of L locations."""
        config, groups = self.config, {}
        if self.encoder is not None:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=config.amp_bf16):
                maps = self.encoder(images)
            groups = feature_groups(
                maps,
                global_stats=config.feature_include_global_stats,
                local=config.feature_include_local,
                patch_stats=config.feature_include_patch_stats,
            )
        if config.vanilla_loss_weight:
            groups[VANILLA] = images.flatten(1).unsqueeze(1).float()
        return groups
