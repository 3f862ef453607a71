"""Named statistics of feature maps: the vectors whose distributions drifting brings together."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError

VANILLA = "vanilla"
"""The name of the feature that is the sample itself."""

PATCH_SIDES = (2, 4)
"""Sides of the patches of a map, in its cells, whose statistics are features."""

_EPS = 1e-6  # under the root of a variance: on a constant map the gradient of a deviation is then 0, not infinite


def feature_groups(
    maps: Sequence[Float[Tensor, "B _ _ _"]], *, global_stats: bool, local: bool, patch_stats: bool
) -> dict[str, Float[Tensor, "B _ _"]]:
    """The features of a batch by name, each [B, L, S]: S numbers at each of L locations, row by row.

    Of the i-th map [B, S, H, W], counted from 1, these are

    - `stage<i>/mean` and `stage<i>/std`: over the whole map, L = 1;
    - `stage<i>/local`: every cell, L = H*W;
    - `stage<i>/patch<p>/mean` and `.../std`: over patches of p x p cells, side by side; at the right and lower edge of
      a map that p does not divide they are smaller.

    A feature that would only repeat another one, such as the patch that is the whole map, or that is always the same,
    such as the deviation of a single cell, is left out. Float32, or float64 where the maps are.

    Args:
        maps: of a feature encoder; B is the same in all.
        global_stats: include the statistics of whole maps.
        local: include the cells.
        patch_stats: include the statistics of patches.

    Raises:
        ConfigError: no feature is left.

    Source: the drifting document, "Generative-Drifting Paper-Alignment Fixes"; Deng et al. 2026, "Generative Modeling
    via Drifting", section on feature extraction.
    """
    groups: dict[str, Tensor] = {}
    for number, values in enumerate(maps, start=1):
        values = values if values.dtype == torch.float64 else values.float()
        cells = values.shape[2] * values.shape[3]
        name = f"stage{number}"
        if global_stats:
            groups |= _whole_map(name, values)
        if local and not (cells == 1 and global_stats):
            groups[f"{name}/local"] = _by_location(values)
        if patch_stats:
            groups |= _patches(name, values, global_stats)
    if not groups:
        raise ConfigError("no features are left; include global statistics, local features or patch statistics")
    return groups


def _whole_map(name: str, values: Float[Tensor, "B S H W"]) -> dict[str, Tensor]:
    flat = values.flatten(2)
    mean = flat.mean(dim=2, keepdim=True)
    groups = {f"{name}/mean": mean.mT}
    if flat.shape[2] > 1:
        variance = (flat - mean).square().mean(dim=2, keepdim=True)  # on a CPU, several times as fast as torch's var
        groups[f"{name}/std"] = (variance + _EPS).sqrt().mT
    return groups


def _patches(name: str, values: Float[Tensor, "B S H W"], global_stats: bool) -> dict[str, Tensor]:
    height, width = values.shape[2:]
    groups: dict[str, Tensor] = {}
    for index, side in enumerate(PATCH_SIDES):
        is_whole = side >= height and side >= width
        # of several patches that cover the map, the smallest speaks for all
        is_repeated = is_whole and (global_stats or (index > 0 and PATCH_SIDES[index - 1] >= max(height, width)))
        if height * width == 1 or is_repeated:
            continue
        mean, variance = _patch_moments(values, side)
        groups[f"{name}/patch{side}/mean"] = _by_location(mean)
        groups[f"{name}/patch{side}/std"] = _by_location((variance + _EPS).sqrt())
    return groups


def _patch_moments(
    values: Float[Tensor, "B S H W"], side: int
) -> tuple[Float[Tensor, "B S h w"], Float[Tensor, "B S h w"]]:
    """Mean and variance of patches; the mean is taken off before squaring, which float32 needs."""
    height, width = values.shape[2:]
    mean = _pool(values, side)
    spread = mean.repeat_interleave(side, dim=2)[:, :, :height].repeat_interleave(side, dim=3)[..., :width]
    return mean, _pool((values - spread).square(), side)


def _pool(values: Float[Tensor, "B S H W"], side: int) -> Float[Tensor, "B S h w"]:
    return F.avg_pool2d(values, side, ceil_mode=True)  # a window that hangs over the edge counts its true cells


def _by_location(values: Float[Tensor, "B S H W"]) -> Float[Tensor, "B L S"]:
    return values.flatten(2).transpose(1, 2)
