"""The features of clips that drifting compares: of every frame, of the change between frames, and of the whole."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import VANILLA, feature_groups


class ClipFeatures:
    """Gives the features that the settings name.

    Args:
        config: the settings.
        encoder: gives feature maps of single frames; None where only the clips themselves are compared.
    """

    def __init__(self, config: ClipConfig, encoder: FeatureEncoder | None) -> None:
        self.config = config
        self.encoder = encoder

    def __call__(self, clips: Float[Tensor, "B C T H W"]) -> dict[str, Float[Tensor, "B _ _"]]:
        """The features by name, each [B, L, S]: S numbers at each of L locations.

        Those of frames have the names of `feature_groups`, with the frames' locations one after the other. With
        `feature_include_motion` every whole-map mean comes also as `<name>/change`, the differences between
        neighbouring frames, and as `<name>/course`, all frames in one vector, which ties a clip to its keyframes.
        """
        config, groups = self.config, {}
        if self.encoder is not None:
            groups = self._of_frames(clips)
        if config.vanilla_loss_weight:
            groups[VANILLA] = clips.flatten(1).unsqueeze(1).float()
        return groups

    def _of_frames(self, clips: Float[Tensor, "B C T H W"]) -> dict[str, Tensor]:
        config, (batch, _, num_frames, _, _) = self.config, clips.shape
        assert self.encoder is not None
        with torch.autocast(clips.device.type, torch.bfloat16, enabled=config.amp_bf16):
            maps = self.encoder(clips.transpose(1, 2).flatten(0, 1))
        of_frames = feature_groups(
            maps,
            global_stats=config.feature_include_global_stats or config.feature_include_motion,
            local=config.feature_include_local,
            patch_stats=config.feature_include_patch_stats,
        )
        groups = {}
        for name, values in of_frames.items():
            by_frame = values.unflatten(0, (batch, num_frames))
            is_global = name.count("/") == 1 and not name.endswith("local")
            if not is_global or config.feature_include_global_stats:
                groups[name] = by_frame.flatten(1, 2)
            if is_global and name.endswith("mean") and config.feature_include_motion:
                whole = by_frame.squeeze(2)
                groups[f"{name}/change"] = whole.diff(dim=1)
                groups[f"{name}/course"] = whole.flatten(1).unsqueeze(1)
        return groups
