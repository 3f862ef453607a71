"""The parts that a condition vector is made of: the prompt, and a clip's keyframes."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from latentloom.drifting.clips.clip_sample import ClipSample
from latentloom.drifting.encoders import FeatureEncoder
from latentloom.drifting.features import feature_groups
from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes.frame_schedule import frame_levels
from latentloom.tensors import TextEmbeddings


class ConditionSettings(BaseModel):
    """What goes into the vector, and with which weight."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=64, ge=1, description="Numbers of the vector, at most.")
    min_given: int = Field(default=2, ge=1, description="Keyframes: those of the last corruption level.")
    grid: int = Field(default=2, ge=1, description="Keyframes are averaged to grid x grid cells.")
    text_weight: float = Field(default=1.0, ge=0, description="Weight of the prompt; 0 leaves it out.")
    keyframe_weight: float = Field(default=1.0, ge=0, description="Weight of the keyframes' values; 0 leaves them out.")
    feature_weight: float = Field(default=1.0, ge=0, description="Weight of the keyframes' features, if an encoder is.")

    @model_validator(mode="after")
    def _has_a_part(self) -> "ConditionSettings":
        if not (self.text_weight or self.keyframe_weight or self.feature_weight):
            raise ValueError("all weights are 0; give one part a weight above 0")
        return self


class ConditionParts:
    """Gives the channels of all parts of a clip side by side, before they are standardised.

    Args:
        settings: what goes in.
        clip_shape: channels, frames, rows and columns of the clips it takes.
        text_width: channels of their text tokens; None leaves the prompt out.
        features: gives the maps of single frames [B, C, H, W]; None leaves them out.

    Attributes:
        keyframes: numbers of the frames that it looks at.
        layout: weight and number of channels of each part, known once it has seen a clip.

    Raises:
        ShapeError: a feature encoder of other channels.
        ConfigError: no part is left.
    """

    def __init__(
        self,
        settings: ConditionSettings,
        clip_shape: tuple[int, int, int, int],
        text_width: int | None,
        features: FeatureEncoder | None,
    ) -> None:
        if features is not None and features.channels != clip_shape[0]:
            raise ShapeError(f"clips of {clip_shape[0]} channels for a feature encoder of {features.channels}")
        self.settings = settings
        self.clip_shape = clip_shape
        self.text_width = text_width if settings.text_weight else None
        self.features = features if settings.feature_weight else None
        self.keyframes = frame_levels(clip_shape[1], 1, settings.min_given)[-1] if clip_shape[1] > 1 else (0,)
        self.layout: tuple[tuple[float, int], ...] = ()
        if not (self.text_width or settings.keyframe_weight or self.features):
            raise ConfigError("nothing is left to look at: the clips have no text; give keyframes a weight above 0")

    def of_samples(self, samples: Sequence[ClipSample]) -> Float[Tensor, "B R"]:
        """Of clips out of shards; see ConditionEncoder.embed."""
        shapes = {tuple(sample.values.shape) for sample in samples}
        if shapes != {self.clip_shape}:
            other = next(iter(shapes - {self.clip_shape}))
            raise ShapeError(f"a clip of {list(other)} for an encoder of {list(self.clip_shape)}; give equal clips")
        texts = [sample.text for sample in samples if sample.text is not None]
        if self.text_width is None:
            return self.of_clips(torch.stack([sample.values for sample in samples]), None)
        if len(texts) < len(samples) or {text.shape[1] for text in texts} != {self.text_width}:
            raise ShapeError(f"a clip's text does not have {self.text_width} channels; give clips of one text encoder")
        return self.of_clips(torch.stack([sample.values for sample in samples]), TextEmbeddings.from_list(texts))

    @torch.no_grad()
    def of_clips(self, values: Float[Tensor, "B C T H W"], text: TextEmbeddings | None) -> Float[Tensor, "B R"]:
        """Of a batch of clips; see ConditionEncoder.embed."""
        if tuple(values.shape[1:]) != self.clip_shape:
            raise ShapeError(f"clips of {list(values.shape[1:])} for an encoder of {list(self.clip_shape)}")
        settings, parts = self.settings, []
        if self.text_width is not None:
            if text is None or text.dim != self.text_width or len(text) != len(values):
                given = "none" if text is None else f"{len(text)} of {text.dim} channels"
                raise ShapeError(f"{len(values)} texts of {self.text_width} channels are needed, not {given}")
            parts.append((settings.text_weight, pooled_text(text).to(values.device)))
        frames = values[:, :, list(self.keyframes)].float().transpose(1, 2)  # [B, K, C, H, W]
        if settings.keyframe_weight:
            cells = F.adaptive_avg_pool2d(frames.flatten(0, 1), settings.grid)
            parts.append((settings.keyframe_weight, cells.reshape(len(values), -1)))
        if self.features is not None:
            parts.append((settings.feature_weight, self._of_features(frames)))
        self.layout = tuple((weight, part.shape[1]) for weight, part in parts)
        return torch.cat([part for _, part in parts], dim=1)

    def num_channels(self, found: int) -> int:
        """Channels of all parts; those of features cannot be told before they are computed."""
        if self.features is not None:
            return found
        channels, _, _, _ = self.clip_shape
        of_keyframes = channels * len(self.keyframes) * self.settings.grid**2 if self.settings.keyframe_weight else 0
        return (self.text_width or 0) + of_keyframes

    def _of_features(self, frames: Float[Tensor, "B K C H W"]) -> Float[Tensor, "B R"]:
        assert self.features is not None
        device = next(self.features.network.parameters()).device
        maps = self.features(frames.flatten(0, 1).to(device))
        groups = feature_groups(maps, global_stats=True, local=False, patch_stats=False)
        of_frames = torch.cat([group.flatten(1) for group in groups.values()], dim=1)
        return of_frames.float().reshape(len(frames), -1).to(frames.device)


def pooled_text(text: TextEmbeddings) -> Float[Tensor, "B E"]:
    """The mean of each prompt's true tokens in float32; zeros for a prompt without any."""
    owners = torch.repeat_interleave(torch.arange(len(text), device=text.device), text.lengths)
    sums = torch.zeros(len(text), text.dim, dtype=torch.float32, device=text.device)
    return sums.index_add_(0, owners, text.tokens.float()) / text.lengths.clamp_min(1).unsqueeze(1)
