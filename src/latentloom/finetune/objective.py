"""Flow matching as Wan is trained: noise levels, noised latents, targets, and the loss.

A latent at noise level t is `(1 - t) x + t noise`; the model is asked for the velocity `noise - x` at timestep 1000 t.

Source: Lipman et al. 2023, arXiv:2210.02747; the logit-normal density and the shift are Esser et al. 2024,
arXiv:2403.03206, sections 3.1 and 5.3.2.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.finetune.config import ModelConfig
from latentloom.wan.sampling import NUM_TRAIN_TIMESTEPS

EVALUATION_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the evaluation loss is taken: quantiles of the distribution that training draws noise levels from."""


SMALLEST_SHARE = 1e-9
"""Of a distribution that a range may hold; quantiles of less are lost to rounding."""


@dataclass(frozen=True)
class NoiseLevels:
    """The distribution of noise levels in training, cut to a range.

    Args:
        method: `logit_normal` or `uniform`.
        scale: width of the logit-normal distribution.
        shift: level t becomes `shift t / (1 + (shift - 1) t)`.
        low, high: the range; a level is drawn from what the distribution has inside it.

    Raises:
        ConfigError: an empty range, or one that the distribution never enters.
    """

    method: str = "logit_normal"
    scale: float = 1.0
    shift: float = 1.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(
                f"noise levels from {self.low} to {self.high} are no range; raise model.max_t or lower model.min_t"
            )
        if self._share_below(self.high) - self._share_below(self.low) < SMALLEST_SHARE:
            raise ConfigError(
                f"noise levels from {self.low} to {self.high} are next to never drawn with model.sigmoid_scale = "
                f'{self.scale}; set model.timestep_sample_method = "uniform", or widen model.min_t and model.max_t'
            )

    @classmethod
    def of(cls, config: ModelConfig, low: float = 0.0, high: float = 1.0) -> "NoiseLevels":
        """What the settings ask for, inside the range of an expert."""
        low, high = max(low, config.min_t), min(high, config.max_t)
        return cls(config.timestep_sample_method, config.sigmoid_scale, config.shift or 1.0, low, high)

    def at(self, quantile: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """The levels below which these shares of all draws lie; a uniform draw becomes a draw of a level."""
        begin, end = self._share_below(self.low), self._share_below(self.high)
        share = begin + (end - begin) * quantile.double()
        base = share if self.method == "uniform" else torch.sigmoid(self.scale * torch.special.ndtri(share))
        levels = self.shift * base / (1 + (self.shift - 1) * base)
        return levels.clamp(self.low, self.high).float()

    def _share_below(self, level: float) -> float:
        base = level / (self.shift - (self.shift - 1) * level)
        if self.method == "uniform" or not 0 < base < 1:
            return base
        return 0.5 * math.erfc(math.log(1 / base - 1) / self.scale / math.sqrt(2))  # erfc is exact far below 0 too


def noise_latents(
    latents: Float[Tensor, "B C T H W"],
    noise: Float[Tensor, "B C T H W"],
    levels: Float[Tensor, "B"],
    is_first_frame_clean: Tensor,
    patch: tuple[int, int, int],
    by_token: bool,
) -> tuple[Float[Tensor, "B C T H W"], Float[Tensor, "B *N"], Float[Tensor, "B 1 T 1 1"]]:
    """Noised latents, the timestep of each clip or token, and the share of each frame in the loss.

    Args:
        latents, noise: clean latents and standard normal noise.
        levels: noise level of each clip, from 0 to 1.
        is_first_frame_clean: [B] booleans; such a clip keeps its first latent frame, at timestep 0 and out of the loss.
        patch: latent frames, rows and columns per token.
        by_token: give a timestep per token, N of them, and not one per clip.

    Source: Wan 2.2 `wan/textimage2video.py`, where a token of the given frame has timestep 0.
    """
    batch, _, frames, rows, columns = latents.shape
    level = levels.view(-1, 1, 1, 1, 1).expand(batch, 1, frames, 1, 1).clone()
    weight = torch.ones_like(level)
    level[is_first_frame_clean, :, 0] = 0
    weight[is_first_frame_clean, :, 0] = 0
    weight = weight * (frames / weight.sum(dim=2, keepdim=True).clamp_min(1))
    noisy = torch.lerp(latents, noise, level)
    if not by_token:
        return noisy, levels * NUM_TRAIN_TIMESTEPS, weight
    steps = level[:, 0, :: patch[0]].expand(batch, frames // patch[0], rows // patch[1], columns // patch[2])
    return noisy, steps.flatten(1) * NUM_TRAIN_TIMESTEPS, weight


def flow_matching_loss(
    velocity: Float[Tensor, "B C T H W"], target: Float[Tensor, "B C T H W"], weight: Float[Tensor, "B 1 T 1 1"]
) -> Float[Tensor, ""]:
    """Mean squared error in float32, every clip with the same weight."""
    return ((velocity.float() - target).square() * weight).mean()
