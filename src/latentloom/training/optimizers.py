"""Muon for hidden matrices, AdamW for everything else."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

#: Modules whose weights are matrices but act as look-up tables or as the model's ends; Muon is not meant for them.
_ADAM_MODULES = (nn.Embedding,)


def make_optimizers(
    modules: Iterable[nn.Module],
    *,
    muon_lr: float,
    adam_lr: float,
    weight_decay: float = 0.01,
    adam_names: Sequence[str] = (),
) -> list[Optimizer]:
    """Optimizers that together own every trainable parameter of the modules exactly once.

    Args:
        modules: what is trained.
        muon_lr: rate of the weights of linear layers and convolutions (flattened to one row per output), scaled per
            matrix to the size of an AdamW step.
        adam_lr: rate of everything else: embeddings and vectors (biases, norms).
        weight_decay: decoupled decay of matrices; vectors are never decayed.
        adam_names: parameters whose name contains one of these go to AdamW although they are matrices
            (input and output projections).

    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers"; the step size rule is Liu et al. 2025,
    arXiv:2502.16982, eq. 4.
    """
    matrices, tables, vectors = [], [], []
    owned: set[int] = set()
    for module in modules:
        embeddings = {id(part.weight) for part in module.modules() if isinstance(part, _ADAM_MODULES)}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad or id(parameter) in owned:
                continue
            owned.add(id(parameter))
            if parameter.ndim < 2:
                vectors.append(parameter)
            elif id(parameter) in embeddings or any(part in name for part in adam_names):
                tables.append(parameter)
            else:
                matrices.append(parameter)
    groups = [{"params": tables, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [AdamW(groups, lr=adam_lr, betas=(0.9, 0.99))]
    if matrices:
        optimizers.append(FlattenedMuon(matrices, lr=muon_lr, weight_decay=weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


class FlattenedMuon(Muon):
    """Muon for weights of any rank: each is treated as the matrix [outputs, inputs * kernel], in place.

    Args:
        weights: parameters of rank 2 or more, contiguous.
        lr: step size, scaled per matrix to that of AdamW.
        weight_decay: decoupled.
    """

    def __init__(self, weights: Sequence[Tensor], lr: float, weight_decay: float) -> None:
        self._weights = list(weights)
        # The matrices share the weights' memory, so a step on them is a step on the weights.
        matrices = [nn.Parameter(weight.detach().view(len(weight), -1)) for weight in weights]
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for weight in self._weights:
            weight.grad = None

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        matrices = [matrix for group in self.param_groups for matrix in group["params"]]
        for matrix, weight in zip(matrices, self._weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.flatten(1)
        super().step(closure)


def set_learning_rate(optimizers: Iterable[Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` times the rate it was made with."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
