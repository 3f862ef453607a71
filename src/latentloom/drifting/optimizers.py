"""The optimizers of both trainings, as the settings name them."""

from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

from latentloom.drifting.config import OptimizationConfig
from latentloom.training import make_optimizers
from latentloom.training.schedules import warmup_constant, warmup_cosine

_BETAS = (0.9, 0.95)


def make_drift_optimizers(
    module: nn.Module, config: OptimizationConfig, adam_names: Sequence[str] = ()
) -> list[Optimizer]:
    """Optimizers that together own every trainable parameter of the module once.

    `latentloom.training.set_learning_rate` sets their rates as a share of `lr` and `muon_lr`.

    Args:
        module: what is trained; not wrapped by DistributedDataParallel, whose parameters have other names.
        config: the settings.
        adam_names: parameters whose name contains one of these stay with Adam when the rest is Muon's: input and
            output layers.
    """
    if config.optimizer == "muon":
        return make_optimizers(
            [module],
            muon_lr=config.muon_lr,
            adam_lr=config.lr,
            weight_decay=config.weight_decay,
            adam_names=adam_names,
        )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], lr=config.lr, betas=_BETAS, fused=True)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return [optimizer]


def rate_factor(step: int, config: OptimizationConfig) -> float:
    """Share of the full rate that a step, counted from 0, is made with."""
    if config.decay == "constant":
        return warmup_constant(step, warmup=config.warmup)
    return warmup_cosine(step, config.steps, warmup=config.warmup)
