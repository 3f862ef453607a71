"""Pooled features of many texts, computed once and kept in a file for as long as nothing that made them changes."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.bridge.model import LatentBridge, by_length
from latentloom.runs import track
from latentloom.storage import atomic_write

logger = logging.getLogger(__name__)


class PooledFeatures:
    """Features of texts by row, in a file that is mapped and not held in memory.

    Args:
        path: a `.npy` file of float32 [N, F].
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.values)

    def load(self, rows: Sequence[int]) -> Float[Tensor, "B F"]:
        """Features of some texts, copied."""
        return torch.from_numpy(np.ascontiguousarray(self.values[np.asarray(rows)]))

    def moments(self) -> tuple[Float[Tensor, "F"], Float[Tensor, "F"]]:
        """Mean and deviation of every feature, in float64 sums over blocks of rows."""
        total, squares = np.zeros(self.values.shape[1]), np.zeros(self.values.shape[1])
        for start in range(0, len(self), 4096):
            block = np.asarray(self.values[start : start + 4096], dtype=np.float64)
            total += block.sum(0)
            squares += np.square(block).sum(0)
        mean = total / len(self)
        std = np.sqrt(np.maximum(squares / len(self) - mean**2, 0.0))
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()


def pooled_features(bridge: LatentBridge, ids: Sequence[Sequence[int]], folder: Path) -> PooledFeatures:
    """Features of every text, from the file in `folder` where they were computed before.

    The file's name holds what they depend on: the backbone, the pooled layers, the sink, and the texts' tokens. Another
    backbone, or texts cut elsewhere, therefore never meet old features.

    Args:
        bridge: whose features never change (`features_are_fixed`).
        ids: tokens of each text.
        folder: of the files, made where it does not exist.

    Raises:
        FileError: the folder cannot be written to.
    """
    path = folder / f"features-{_fingerprint(bridge, ids)}.npy"
    if path.exists():
        logger.info("features of %d texts are taken from %s", len(ids), path)
        return PooledFeatures(path)
    width = len(bridge.layers) * bridge.backbone.hidden_size
    with atomic_write(path) as temporary:
        values = np.lib.format.open_memmap(temporary, "w+", np.float32, (len(ids), width))
        with torch.no_grad(), bridge.computing():
            for rows in track(by_length(ids), "pooling texts"):
                values[np.asarray(rows)] = bridge.pool([ids[row] for row in rows]).cpu().numpy()
        values.flush()
        del values
    return PooledFeatures(path)


def features_are_fixed(bridge: LatentBridge) -> bool:
    """True where no step of a training changes what texts are pooled to."""
    config = bridge.config
    changes = config.lora.rank > 0 and config.lora.encode
    ties = bridge.backbone.output_weight is bridge.backbone.embedding.weight
    reads_trained = ties and not config.freeze_lm_head
    return config.freeze_backbone and not config.unfreeze_layers and not reads_trained and not changes


def _fingerprint(bridge: LatentBridge, ids: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    sink = bridge.config.attention_sink and bridge.backbone.sink_id
    about = (bridge.backbone.fingerprint, str(bridge.dtype), bridge.layers, sink)
    digest.update(repr(about).encode())
    for row in ids:
        digest.update(np.asarray([len(row), *row], dtype=np.int64).tobytes())
    return digest.hexdigest()[:16]
