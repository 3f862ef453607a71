"""A fixed feature space for clips, of a network that was never trained: the yardstick of refined clips."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.errors import ShapeError

#: Figures compare only where all of these are the same, so they are not settings.
WIDTHS = (8, 12, 12)
KERNEL = 3
SMALLEST_HALVED = 8  # an axis of fewer places keeps its size from stage to stage
SEED = 0
NUM_FEATURES = 4 * sum(WIDTHS)
_CLIPS_AT_ONCE = 32


class RandomFeatures(nn.Module):
    """128 numbers per clip that tell motion, sharpness and content apart, by 3D convolutions with random weights.

    Three stages of convolution and ReLU see a clip and, once more, the differences between its neighbouring frames. The
    features are the roots of the means and deviations of each stage's channels over time and space; without the roots,
    a few clips of high contrast would decide the distances. The weights keep the scale of activations and come from a
    fixed seed, so that they are the same everywhere and favour no method; networks trained on photographs (as FVD's)
    know nothing of latents.

    Call `fit_unit` with real clips before anything else. Each of the twelve groups of features (stage, mean or
    deviation, clip or differences) then counts alike, in units of the root of its mean variance over those clips, so
    that distances depend neither on the widths nor on the data's own scale.

    Args:
        num_channels: of a clip: 3 for pixels, 16 for Wan's latents.

    Source: Naeem et al. 2020, arXiv:2002.09797, section 3.2 (random embeddings).
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        generator = torch.Generator().manual_seed(SEED)
        sizes = [num_channels, *WIDTHS]
        weights = [_random_kernels(sizes[i + 1], sizes[i], generator) for i in range(len(WIDTHS))]
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)
        self.channel_mean: Tensor
        self.channel_scale: Tensor
        self.centre: Tensor
        self.unit: Tensor
        self.register_buffer("channel_mean", torch.zeros(num_channels, 1, 1, 1))
        self.register_buffer("channel_scale", torch.ones(num_channels, 1, 1, 1))
        self.register_buffer("centre", torch.zeros(NUM_FEATURES))
        self.register_buffer("unit", torch.ones(NUM_FEATURES))

    @torch.no_grad()
    def fit_unit(self, clips: Float[Tensor, "N C T H W"]) -> "RandomFeatures":
        """Take origin and unit of the features from real clips, best those of the training; gives itself back.

        Args:
            clips: two or more; a few hundred are enough.

        Raises:
            ShapeError: other channels, a single frame, or fewer than two clips.
        """
        self._check(clips)
        if len(clips) < 2:
            raise ShapeError(f"{len(clips)} clips to take the unit of features from; give two or more")
        exact = clips.double().transpose(0, 1).flatten(1)
        tiny = torch.finfo(torch.float32).tiny
        self.channel_mean.copy_(exact.mean(dim=1).view(-1, 1, 1, 1))
        self.channel_scale.copy_(exact.std(dim=1, correction=0).clamp_min(tiny).view(-1, 1, 1, 1))
        self.centre.zero_()
        self.unit.fill_(1)
        features = self.features(clips).double()
        variances = features.var(dim=0, correction=0).split(_group_sizes())
        unit = torch.cat([group.mean().sqrt().clamp_min(tiny).expand(len(group)) for group in variances])
        self.centre.copy_(features.mean(dim=0))
        # a group that is the same in all real clips, as differences of clips without motion, keeps its own scale
        self.unit.copy_(torch.where(unit <= tiny, torch.ones_like(unit), unit))
        return self

    @torch.no_grad()
    def features(self, clips: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N 128"]:
        """Features in float32, of mean 0 and variance 1 on average over the clips that `fit_unit` was given.

        Args:
            clips: in the space that the unit was taken in, of two or more frames.

        Raises:
            ShapeError: other channels, or a single frame.
        """
        self._check(clips)
        parts = [self._of_clips(part) for part in clips.split(_CLIPS_AT_ONCE)]
        return (torch.cat(parts) - self.centre) / self.unit

    def _of_clips(self, clips: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N 128"]:
        clips = (clips.to(self.unit.device, torch.float32) - self.channel_mean) / self.channel_scale
        return torch.cat([self._pooled(clips), self._pooled(clips.diff(dim=2))], dim=1)

    def _pooled(self, x: Float[Tensor, "N C T H W"]) -> Float[Tensor, "N 64"]:
        pooled = []
        for number, weight in enumerate(self.weights):
            # the first stage sees every place, the others halve what is large enough
            stride = [2 if number and size >= SMALLEST_HALVED else 1 for size in x.shape[2:]]
            x = F.relu(F.conv3d(x, weight, stride=stride, padding=KERNEL // 2))
            pooled += [x.mean(dim=(2, 3, 4)), x.std(dim=(2, 3, 4), correction=0)]
        return torch.cat(pooled, dim=1).sqrt()

    def _check(self, clips: Tensor) -> None:
        if clips.ndim != 5 or clips.shape[1] != self.num_channels or clips.shape[2] < 2:
            raise ShapeError(
                f"clips {tuple(clips.shape)} for features of {self.num_channels} channels; "
                f"give [N, {self.num_channels}, T, H, W] with T of 2 or more"
            )


def _random_kernels(num_out: int, num_in: int, generator: torch.Generator) -> Float[Tensor, "O I K K K"]:
    """Normal weights, every kernel of the norm (root of 2) that keeps the mean square of what ReLU lets through."""
    weight = torch.randn(num_out, num_in, KERNEL, KERNEL, KERNEL, generator=generator)
    norm = weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    return weight * (math.sqrt(2) / norm)


def _group_sizes() -> list[int]:
    return [width for _ in ("clip", "differences") for width in WIDTHS for _ in ("mean", "deviation")]
