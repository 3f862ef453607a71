"""Sixteen hex digits that tell one model's weights from another's without reading all of them.

What is computed by a model is stored under its fingerprint. It hashes at most 256 evenly spaced values of every weight,
rounded to bfloat16: the same checkpoint in float32 or bfloat16, in any layout, has the same fingerprint, and training
changes it.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

ENCODER_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers")
"""The settings of a UMT5 encoder that its fingerprint covers."""

NUM_VALUES = 256


def fingerprint(settings: Sequence[object], weights: Iterable[tuple[str, Shaped[Tensor, "..."]]]) -> str:
    """Sixteen hex digits of these settings and these named weights, which may come in any order.

    Args:
        settings: what counts beside the weights, each writable as JSON.
        weights: name and tensor; of each only a sample is kept, so they may be mapped files.
    """
    digest = hashlib.sha256()
    for setting in settings:
        digest.update(json.dumps(setting, sort_keys=True).encode())
    samples = {name: (tuple(weight.shape), _sample(weight)) for name, weight in weights}
    for name, (shape, sample) in sorted(samples.items()):
        digest.update(f"{name}{shape}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _sample(weight: Shaped[Tensor, "..."]) -> Float[Tensor, "N"]:
    values = weight.detach().flatten()
    return values[:: max(1, values.numel() // NUM_VALUES)][:NUM_VALUES].to("cpu", torch.bfloat16, copy=True)
