"""Shards of discs that cross small pictures, and settings with which a refiner of them trains in milliseconds."""

from pathlib import Path
from typing import Any

import torch
from moving_blobs import moving_blobs

from latentloom.drifting.clips.clip_sample import Anchors
from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.shard_writer import ShardWriter

NUM_FRAMES, SIDE = 9, 8
TEXT_WIDTH = 6
TINY: dict[str, Any] = {
    **{"device": "cpu", "width": 16, "depth": 1, "num_heads": 2, "patch_size": 2, "num_levels": 3},
    **{"steps": 4, "warmup": 1, "log_every": 1, "save_every": 2, "ema_decay": 0.9, "num_pseudo_classes": 3},
    **{"n_classes_step": 2, "n_gen_per_class": 3, "drift_n_pos": 4, "queue_pos": 6, "queue_neg": 5},
    **{"feature_loss_weight": 0.0, "vanilla_loss_weight": 1.0, "held_out_share": 0.25},
}


def blobs(num: int, seed: int = 0) -> torch.Tensor:
    """Clips [num, 3, 9, 8, 8] of values that float16 holds."""
    return moving_blobs(num, frames=NUM_FRAMES, side=SIDE, distance=4.0, seed=seed).half().float()


def write_blobs(
    folder: Path, num: int = 24, *, texts: bool = True, anchors: bool = False, seed: int = 0, **settings: Any
) -> Path:
    """Shards of blobs; with texts of one to three tokens, and another model's keyframes at every second frame."""
    generator = torch.Generator().manual_seed(seed)
    with ShardWriter(folder, space="pixel", clips_per_shard=10, **settings) as writer:
        for number, clip in enumerate(blobs(num, seed)):
            text = torch.randn(1 + number % 3, TEXT_WIDTH, generator=generator) if texts else None
            index = torch.arange(0, NUM_FRAMES, 2)
            students = Anchors(index, (clip[:, index] + 0.25).half().float()) if anchors else None
            writer.write(f"blob{number:03d}", clip, text, f"disc {number % 3}", students)
    return folder


def tiny(root: Path, **changes: Any) -> ClipConfig:
    """Settings of a small training on shards."""
    return ClipConfig.model_validate({**TINY, "data_root": root, **changes})
