"""How large an adapter's changes are beside the weights that they change, without forming a change.

A layer's change is dW = B A with A [r, in] and B [out, r]. Its squared Frobenius norm is trace((B^T B)(A A^T)), two
matrices of r by r, and its largest singular value is that of R_B R_A^T, where B = Q_B R_B and A^T = Q_A R_A.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import CheckpointError
from latentloom.runs import track
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS
from latentloom.wan.layouts import Component

TYPES = ("cross_attn", "self_attn", "ffn", "other")
_VALUES_AT_ONCE = 2**22  # of a base weight in float64: 32 MiB

Pair = tuple[Float[Tensor, "r I"], Float[Tensor, "O r"]]


@dataclass(frozen=True)
class TargetDelta:
    """One adapted weight; all norms are of the scaled change, in float64.

    Attributes:
        target: its official name without `.weight`, such as `blocks.3.cross_attn.k`.
        block: the number of its block; None outside the blocks.
        layer: its name in the block, such as `cross_attn.k`.
        type: `cross_attn`, `self_attn`, `ffn` or `other`.
        delta_norm, base_norm: Frobenius norms of dW and of W.
        spectral_norm: the largest singular value of dW.
    """

    target: str
    block: int | None
    layer: str
    type: str
    rank: int
    delta_norm: float
    base_norm: float
    spectral_norm: float

    @property
    def ratio(self) -> float:
        """||dW|| / ||W||; infinite where W is zero and dW is not."""
        if self.base_norm == 0:
            return 0.0 if self.delta_norm == 0 else float("inf")
        return self.delta_norm / self.base_norm

    @property
    def stable_rank(self) -> float:
        """||dW||_F^2 / ||dW||_2^2: over how many directions the change is spread, at most `rank`; 0 for no change."""
        return (self.delta_norm / self.spectral_norm) ** 2 if self.spectral_norm else 0.0

    def to_json(self) -> dict[str, Any]:
        """All figures, the derived ones too."""
        return {**asdict(self), "ratio": self.ratio, "stable_rank": self.stable_rank}


@dataclass(frozen=True)
class Summary:
    """Ratios of several targets: how many, their mean, the largest and whose it is."""

    count: int
    mean: float
    max: float
    worst: str


def lora_deltas(adapter: Mapping[str, Pair], base: Component, source: Path) -> list[TargetDelta]:
    """The size of every change, in the order of the blocks; base weights are read one at a time.

    Args:
        adapter: A and B by official name, scales folded in; see `adapter_files.read_adapter`.
        base: the transformer that the adapter is for.
        source: the adapter's path, for messages.

    Raises:
        CheckpointError: a target that the base does not have, or whose shape differs; the message names both shapes.
    """
    wanted = stored_keys(adapter, base, source)
    found = []
    reading = base.shards.read(list(wanted))
    for _ in track(len(wanted), "base weights"):
        key, weight = next(reading)
        name = wanted[key]
        down, up = adapter[name]
        found.append(_measure(name, down, up, frobenius_norm(weight)))
    return sorted(found, key=lambda target: (-1 if target.block is None else target.block, target.target))


def stored_keys(adapter: Mapping[str, Pair], base: Component, source: Path) -> dict[str, str]:
    """The base's stored key of every target -> the target's official name; from headers alone.

    Arguments and errors are those of `lora_deltas`.
    """
    return {_stored_key(base, name, pair, source): name for name, pair in adapter.items()}


@torch.no_grad()
def change_norms(down: Float[Tensor, "r I"], up: Float[Tensor, "O r"]) -> tuple[float, float]:
    """Frobenius and spectral norm of `up @ down` in float64; nothing larger than the two matrices is made.

    Args:
        down: A.
        up: B.
    """
    down, up = down.double(), up.double()
    squared = float(((up.mT @ up) * (down @ down.mT)).sum())
    # the mode "r" leaves the tall factors unbuilt
    core = torch.linalg.qr(up, mode="r").R @ torch.linalg.qr(down.mT, mode="r").R.mT
    return max(squared, 0.0) ** 0.5, float(torch.linalg.matrix_norm(core, ord=2))


@torch.no_grad()
def frobenius_norm(weight: Float[Tensor, "..."]) -> float:
    """The norm in float64, taken part by part so that no copy of the whole weight is made."""
    parts = weight.reshape(-1).split(_VALUES_AT_ONCE)
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in parts) ** 0.5


def summarise(targets: Sequence[TargetDelta], by: str) -> dict[str, Summary]:
    """Ratios gathered by an attribute: `type`, `layer` or `block`."""
    gathered: dict[str, list[TargetDelta]] = {}
    for target in targets:
        gathered.setdefault(str(getattr(target, by)), []).append(target)
    return {name: _summary(of_name) for name, of_name in gathered.items()}


def above(targets: Sequence[TargetDelta], cap: float) -> list[TargetDelta]:
    """The targets whose ratio is above the cap, the worst first."""
    return sorted((target for target in targets if target.ratio > cap), key=lambda target: -target.ratio)


def _summary(targets: Sequence[TargetDelta]) -> Summary:
    worst = max(targets, key=lambda target: target.ratio)
    return Summary(len(targets), fmean(target.ratio for target in targets), worst.ratio, worst.target)


def _stored_key(base: Component, name: str, pair: Pair, source: Path) -> str:
    """The base's key of a target; its shape must be that of the change."""
    down, up = pair
    ours = TRANSFORMER_KEYS.from_official(f"{name}.weight")
    stored = base.names.get(ours) if ours is not None else None
    if stored is None:
        raise CheckpointError(
            f"{source} changes {name}, which {base.shards.files[0]} does not have; give the model that it was made for"
        )
    shape, change = base.stored[stored].shape, (up.shape[0], down.shape[1])
    if shape != change:
        raise CheckpointError(
            f"{source}: {name} is a change of {list(change)}, {base.prefix}{stored} in {base.shards.files[0]} is "
            f"{list(shape)}; give the model that it was made for"
        )
    if base.stored[stored].dtype.startswith("F8") and base.left_over:
        raise CheckpointError(
            f"{base.shards.files[0]} stores scaled fp8 weights ({base.left_over[0]}); give the fp16 or bf16 file"
        )
    return base.prefix + stored


def _measure(name: str, down: Tensor, up: Tensor, base_norm: float) -> TargetDelta:
    parts = name.split(".")
    in_block = parts[0] == "blocks"
    layer = ".".join(parts[2:]) if in_block else name
    delta_norm, spectral_norm = change_norms(down, up)
    return TargetDelta(
        target=name,
        block=int(parts[1]) if in_block else None,
        layer=layer,
        type=next((kind for kind in TYPES if layer.startswith(kind)), "other"),
        rank=down.shape[0],
        delta_norm=delta_norm,
        base_norm=base_norm,
        spectral_norm=spectral_norm,
    )
