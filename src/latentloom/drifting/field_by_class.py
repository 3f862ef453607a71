"""The drifting loss as one would first write it: feature by feature, class by class, through autograd.

Tests hold the fast path against it, and the benchmark shows what the fast path gains.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def drifting_losses_by_class(
    gen: Sequence[Float[Tensor, "C G _ _"]],
    pos: Sequence[Float[Tensor, "C P _ _"]],
    neg: Sequence[Float[Tensor, "C U _ _"]],
    *,
    temperatures: Sequence[float],
    weight_neg: Float[Tensor, "C U"] | None = None,
) -> Float[Tensor, "F C"]:
    """What `drifting_losses` gives, from loops over features, classes, locations and temperatures.

    Args:
        gen, pos, neg, temperatures, weight_neg: as of `drifting_losses`.
    """
    losses = []
    for x_feature, p_feature, u_feature in zip(gen, pos, neg, strict=True):
        num_classes, _, num_locations, _ = x_feature.shape
        problems = [
            _Problem(
                x_feature[c, :, f],
                u_feature[c, :, f],
                p_feature[c, :, f],
                None if weight_neg is None else weight_neg[c],
            )
            for c in range(num_classes)
            for f in range(num_locations)
        ]
        by_problem = torch.stack(_call(problems, temperatures))
        losses.append(by_problem.view(num_classes, num_locations).mean(1))
    return torch.stack(losses)


class _Problem:
    def __init__(self, gen: Tensor, neg: Tensor, pos: Tensor, weight_neg: Tensor | None) -> None:
        self.gen = gen
        with torch.no_grad():
            self.targets = torch.cat([gen, neg, pos])
            self.num_repelling = len(gen) + len(neg)
            self.weights = gen.new_ones(len(self.targets))
            if weight_neg is not None:
                self.weights[len(gen) : self.num_repelling] = weight_neg
            self.distances = torch.cdist(gen, self.targets).square().clamp_min(1e-8).sqrt()

    def force(self, scale: Tensor, sigma: Tensor, temperature: float) -> Tensor:
        logits = -self.distances / scale.clamp_min(1e-3)
        logits = logits - 100 * torch.eye(*logits.shape, dtype=logits.dtype, device=logits.device)
        logits = logits / temperature
        affinity = (logits.softmax(1) * logits.softmax(0)).clamp_min(1e-6).sqrt() * self.weights
        repelling, attracting = affinity[:, : self.num_repelling], affinity[:, self.num_repelling :]
        pull = attracting @ (self.targets[self.num_repelling :] / sigma)
        push = repelling @ (self.targets[: self.num_repelling] / sigma)
        return repelling.sum(1, keepdim=True) * pull - attracting.sum(1, keepdim=True) * push


def _call(problems: Sequence[_Problem], temperatures: Sequence[float]) -> list[Tensor]:
    """The losses of problems that share scale and force norms."""
    with torch.no_grad():
        weighted = torch.stack([(problem.distances * problem.weights).mean() for problem in problems]).mean()
        scale = weighted / torch.stack([problem.weights.mean() for problem in problems]).mean()
        sigma = (scale / problems[0].gen.shape[1] ** 0.5).clamp_min(1e-3)
        fields = [torch.zeros_like(problem.gen) for problem in problems]
        for temperature in temperatures:
            forces = [problem.force(scale, sigma, temperature) for problem in problems]
            norm = torch.stack([force.square().mean() for force in forces]).mean().clamp_min(1e-8).sqrt()
            fields = [field + force / norm for field, force in zip(fields, forces, strict=True)]
    losses = []
    for problem, field in zip(problems, fields, strict=True):
        scaled = problem.gen / sigma
        losses.append((scaled - (scaled + field).detach()).square().mean())
    return losses
