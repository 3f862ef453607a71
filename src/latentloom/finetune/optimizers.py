"""The optimizer that a configuration asks for, over whatever is trained."""

import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from latentloom.errors import ConfigError
from latentloom.finetune.config import OptimizerConfig
from latentloom.training.muon_adamw import MuonWithAdamW
from latentloom.training.optimizer_state import load_optimizer_state, optimizer_state

__all__ = ["keeps_model_dtype", "load_optimizer_state", "make_optimizer", "optimizer_state", "state_bytes"]

#: Matrices that are look-up tables, in either layout's names; Muon is not meant for them.
_TABLES = ("shared.", "embed_tokens.", "token_embedding.", "relative_attention_bias.", "pos_embedding.")

NamedParameters = Sequence[tuple[str, nn.Parameter]]


def make_optimizer(config: OptimizerConfig, groups: Mapping[str, NamedParameters], seed: int = 0) -> Optimizer:
    """One optimizer over all groups; vectors (biases, norms) are never decayed.

    Every group of the optimizer has its `name`, and as `initial_lr` and `peak_lr` the rate it was made with. Without
    any parameters, as in a pipeline stage that trains nothing, its step does nothing.

    Args:
        config: kind, rates and decay.
        groups: what is trained, with names, by part: "te" is the text encoder, "dit" the transformer's adapter.
        seed: of stochastic rounding.
    """
    rates = {"te": config.lr_te or config.lr, "dit": config.lr_dit or config.lr}
    made = [
        {**kind, "name": name, "lr": rates.get(name, config.lr), "params": parameters}
        for name, named in groups.items()
        for kind, parameters in _sorted_by_kind(config, named)
    ]
    made = made or [{"params": [], "lr": config.lr, "weight_decay": 0.0, "muon": False, "name": ""}]
    optimizer = _optimizer(config, made, seed)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["peak_lr"] = group["lr"]
    return optimizer


def keeps_model_dtype(config: OptimizerConfig) -> bool:
    """Whether trained weights stay in the model's dtype; otherwise float32 copies of them are trained."""
    return config.type in ("AdamW8bitKahan", "adamw8bit")


def state_bytes(config: OptimizerConfig, name: str, shape: Sequence[int], weight_bytes: int) -> int:
    """Bytes that the optimizer keeps for one weight: its moments, and what else it needs to be exact.

    Args:
        config: kind of optimizer.
        name, shape: of the weight.
        weight_bytes: per element, 2 or 4.
    """
    count = math.prod(shape)
    if config.type == "muon":
        return (4 if _is_matrix(name, len(shape)) else 8) * count
    blocks, rest = divmod(count, 256)
    if config.type == "AdamW8bitKahan":
        moments = 2 * count + 8 * (blocks + bool(rest)) if count >= 4096 else 8 * count
        return moments + (2 * count if weight_bytes == 2 else 0)
    if config.type == "adamw8bit" and count >= 4096 and rest == 0:
        return 2 * count + 8 * blocks
    return 8 * count


def _is_matrix(name: str, rank: int) -> bool:
    return rank == 2 and not any(part in name for part in _TABLES)


def _sorted_by_kind(config: OptimizerConfig, named: NamedParameters) -> list[tuple[dict[str, Any], list[nn.Parameter]]]:
    """The parameters as matrices, tables and vectors, each with its options; kinds without any are left out."""
    matrices, tables, vectors = [], [], []
    for name, parameter in named:
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif config.type == "muon" and _is_matrix(name, parameter.ndim):
            matrices.append(parameter)
        else:
            tables.append(parameter)
    kinds = [
        ({"weight_decay": config.weight_decay, "muon": True}, matrices),
        ({"weight_decay": config.weight_decay, "muon": False}, tables),
        ({"weight_decay": 0.0, "muon": False}, vectors),
    ]
    return [(kind, parameters) for kind, parameters in kinds if parameters]


def _optimizer(config: OptimizerConfig, groups: list[dict[str, Any]], seed: int) -> Optimizer:
    # The libraries of the 8-bit optimizers take seconds to import, so each is imported when it is asked for.
    if config.type == "muon":
        return MuonWithAdamW(groups, betas=config.betas, eps=config.eps)
    options: dict[str, Any] = {"lr": config.lr, "betas": config.betas, "eps": config.eps}
    options["weight_decay"] = config.weight_decay
    if config.type == "AdamW8bitKahan":
        from latentloom.training.adamw_kahan import AdamW8bitKahan

        return AdamW8bitKahan(groups, **options)
    if config.type == "adamw8bit":
        if find_spec("torchao") is None:
            raise ConfigError(
                'optimizer.type = "adamw8bit" needs torchao; run pip install torchao, or use "AdamW8bitKahan"'
            )
        from latentloom.training.adamw_stochastic import AdamW8bitStochastic

        return AdamW8bitStochastic(groups, seed=seed, **options)
    return AdamW(groups, **options)
