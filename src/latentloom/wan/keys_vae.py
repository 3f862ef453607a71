"""The autoencoders' keys in the official layout and in diffusers, and their configs read off their shapes.

Wan 2.1 numbers the layers of all stages in one flat list; Wan 2.2 nests one list per stage. diffusers tells residual
blocks and resamplers apart by name where the official layout only counts, so the rules depend on how many blocks a
stage has.

Source: wan/modules/vae2_1.py and vae2_2.py of the official repository; diffusers' AutoencoderKLWan.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from typing import Any

from latentloom.errors import CheckpointError
from latentloom.wan.key_map import KeyMap, Rule, prefixed
from latentloom.wan.keys_transformer import Shapes, count_blocks

_RESIDUAL: list[Rule] = [
    ("residual.0.{leaf}", "norm1.{leaf}"),
    ("residual.2.{leaf}", "conv1.{leaf}"),
    ("residual.3.{leaf}", "norm2.{leaf}"),
    ("residual.6.{leaf}", "conv2.{leaf}"),
    ("shortcut.{leaf}", "conv_shortcut.{leaf}"),
]
_RESAMPLE: list[Rule] = [("resample.1.{leaf}", "resample.1.{leaf}"), ("time_conv.{leaf}", "time_conv.{leaf}")]
_ATTENTION: list[Rule] = [(f"{name}.{{leaf}}", f"{name}.{{leaf}}") for name in ("norm", "to_qkv", "proj")]
_ENDS: list[Rule] = [
    ("conv1.{leaf}", "quant_conv.{leaf}"),
    ("conv2.{leaf}", "post_quant_conv.{leaf}"),
    ("{side}.conv1.{leaf}", "{side}.conv_in.{leaf}"),
    ("{side}.head.0.{leaf}", "{side}.norm_out.{leaf}"),
    ("{side}.head.2.{leaf}", "{side}.conv_out.{leaf}"),
    *prefixed("{side}.middle.0", "{side}.mid_block.resnets.0", _RESIDUAL),
    *prefixed("{side}.middle.1", "{side}.mid_block.attentions.0", _ATTENTION),
    *prefixed("{side}.middle.2", "{side}.mid_block.resnets.1", _RESIDUAL),
]


def vae_keys(num_stages: int, num_res_blocks: int, is_residual: bool) -> KeyMap:
    """The rules for an autoencoder of these sizes.

    Args:
        num_stages: resolutions in encoder and decoder, the length of dim_mult.
        num_res_blocks: residual blocks per encoder stage; a decoder stage has one more.
        is_residual: Wan 2.2's nested stages with a parameter-free shortcut around each.
    """
    return KeyMap((*_ENDS, *(_nested(num_res_blocks) if is_residual else _flat(num_stages, num_res_blocks))))


def vae_keys_for(keys: Collection[str]) -> KeyMap:
    """The rules for the autoencoder with these keys, whichever layout they are in."""
    return vae_keys(*_official_sizes(keys) if _is_official(keys) else _our_sizes(keys))


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKLWan for a checkpoint in diffusers' names.

    The latents' mean and deviation are not in the weights: those of the official repository are used for its 16 and
    48 channels, 0 and 1 for any other number.

    Raises:
        CheckpointError: a tensor that fixes a size is missing or has another rank.
    """
    num_stages, num_res_blocks, is_residual = _our_sizes(shapes)
    try:
        base_dim, in_channels = shapes["encoder.conv_in.weight"][:2]
        out_channels, decoder_base_dim = shapes["decoder.conv_out.weight"][:2]
        z_dim = shapes["post_quant_conv.weight"][0]
        widths = [shapes[_last_conv(stage, num_res_blocks, is_residual)][0] for stage in range(num_stages)]
        if not base_dim or any(width < 1 or width % base_dim for width in widths):
            raise ValueError("stage widths that are multiples of the first")
    except (KeyError, IndexError, ValueError) as cause:
        raise CheckpointError(f"not a complete Wan VAE: no usable tensor for {cause}") from cause
    downsample = [_downsampler(i, num_res_blocks, is_residual) + ".time_conv.weight" for i in range(num_stages - 1)]
    patch_size = math.isqrt(in_channels // 3)
    mean, std = _LATENT_STATISTICS.get(z_dim, ("0 " * z_dim, "1 " * z_dim))
    return {
        "base_dim": base_dim,
        "decoder_base_dim": decoder_base_dim // (widths[0] // base_dim),
        "z_dim": z_dim,
        "dim_mult": [width // base_dim for width in widths],
        "num_res_blocks": num_res_blocks,
        "temperal_downsample": [key in shapes for key in downsample],
        "is_residual": is_residual,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "patch_size": patch_size if patch_size > 1 else None,
        "scale_factor_temporal": 2 ** sum(key in shapes for key in downsample),
        "scale_factor_spatial": 2 ** (num_stages - 1) * max(patch_size, 1),
        "latents_mean": [float(number) for number in mean.split()],
        "latents_std": [float(number) for number in std.split()],
    }


def _flat(num_stages: int, num_res_blocks: int) -> list[Rule]:
    """Wan 2.1: encoder lists agree; the decoder's flat list is cut into stages of blocks and one upsampler."""
    path = "encoder.downsamples.{n}", "encoder.down_blocks.{n}"
    rules = [*prefixed(*path, _RESIDUAL), *prefixed(*path, _RESAMPLE)]
    per_stage = num_res_blocks + 2
    for stage in range(num_stages):
        for block in range(num_res_blocks + 1):
            official = f"decoder.upsamples.{stage * per_stage + block}"
            rules += prefixed(official, f"decoder.up_blocks.{stage}.resnets.{block}", _RESIDUAL)
        official = f"decoder.upsamples.{stage * per_stage + num_res_blocks + 1}"
        rules += prefixed(official, f"decoder.up_blocks.{stage}.upsamplers.0", _RESAMPLE)
    return rules


def _nested(num_res_blocks: int) -> list[Rule]:
    """Wan 2.2: a stage's list ends with its resampler."""
    rules: list[Rule] = []
    for side, official, ours, blocks in (
        ("encoder", "down", "down", num_res_blocks),
        ("decoder", "up", "up", num_res_blocks + 1),
    ):
        left, right = f"{side}.{official}samples.{{n}}.{official}samples", f"{side}.{ours}_blocks.{{n}}"
        for block in range(blocks):
            rules += prefixed(f"{left}.{block}", f"{right}.resnets.{block}", _RESIDUAL)
        rules += prefixed(f"{left}.{blocks}", f"{right}.{ours}sampler", _RESAMPLE)
    return rules


def _is_official(keys: Collection[str]) -> bool:
    return any(key.startswith("encoder.downsamples.") for key in keys)


def _official_sizes(keys: Collection[str]) -> tuple[int, int, bool]:
    stages = {int(match[1]) for key in keys if (match := re.match(r"encoder\.downsamples\.(\d+)\.downsamples\.", key))}
    if stages:
        blocks = sum(f"encoder.downsamples.0.downsamples.{i}.residual.2.weight" in keys for i in range(64))
        return max(stages) + 1, blocks, True
    return _flat_sizes(keys, "encoder.downsamples.{}.residual.2.weight", "encoder.downsamples.{}.resample.1.weight")


def _our_sizes(keys: Collection[str]) -> tuple[int, int, bool]:
    if any(key.startswith("encoder.down_blocks.0.resnets.") for key in keys):
        num_blocks = count_blocks(keys, "encoder.down_blocks.0.resnets.")
        return count_blocks(keys, "encoder.down_blocks."), num_blocks, True
    return _flat_sizes(keys, "encoder.down_blocks.{}.conv1.weight", "encoder.down_blocks.{}.resample.1.weight")


def _flat_sizes(keys: Collection[str], block: str, resampler: str) -> tuple[int, int, bool]:
    num_blocks = sum(block.format(index) in keys for index in range(256))
    num_stages = sum(resampler.format(index) in keys for index in range(256)) + 1
    return num_stages, num_blocks // num_stages, False


def _last_conv(stage: int, num_res_blocks: int, is_residual: bool) -> str:
    if is_residual:
        return f"encoder.down_blocks.{stage}.resnets.{num_res_blocks - 1}.conv2.weight"
    return f"encoder.down_blocks.{stage * (num_res_blocks + 1) + num_res_blocks - 1}.conv2.weight"


def _downsampler(stage: int, num_res_blocks: int, is_residual: bool) -> str:
    if is_residual:
        return f"encoder.down_blocks.{stage}.downsampler"
    return f"encoder.down_blocks.{stage * (num_res_blocks + 1) + num_res_blocks}"


# Per number of latent channels: their means and standard deviations, from vae2_1.py and vae2_2.py.
_LATENT_STATISTICS: dict[int, tuple[str, str]] = {
    16: (
        """
        -0.7571 -0.7089 -0.9113 0.1075 -0.1745 0.9653 -0.1517 1.5508 0.4134 -0.0715 0.5517 -0.3632
        -0.1922 -0.9497 0.2503 -0.2921
        """,
        """
        2.8184 1.4541 2.3275 2.6558 1.2196 1.7708 2.6052 2.0743 3.2687 2.1526 2.8652 1.5579
        1.6382 1.1253 2.8251 1.9160
        """,
    ),
    48: (
        """
        -0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891
        0.1570 -0.0098 0.0375 -0.1825 -0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502
        -0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899 -0.2799 -0.1230 -0.0313 -0.1649 0.0117 0.0723
        -0.2839 -0.2083 -0.0520 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573 -0.0548 -0.1681 -0.0667
        """,
        """
        0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901
        0.6885 0.6165 0.8454 0.4978 0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659
        0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093 0.5709 0.6065 0.6415 0.4944
        0.5726 1.2042 0.5458 1.6887 0.3971 1.0600 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744
        """,
    ),
}
