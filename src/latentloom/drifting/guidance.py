"""How strongly a class is set against the images of all classes: drawn for each class and step, and told the refiner.

Source: "Generative Modeling via Drifting" (classifier-free guidance as extra negatives).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def draw_alpha(
    num: int,
    generator: torch.Generator,
    *,
    values: Sequence[float] = (),
    probs: Sequence[float] = (),
    alpha_max: float = 4.0,
    power: float = 3.0,
) -> Float[Tensor, "num"]:
    """Draw guidance strengths; 1 is no guidance.

    Args:
        num: how many, one per class.
        generator: of random numbers; the result lies on its device.
        values: strengths to draw from; empty: any from 1 to `alpha_max`.
        probs: probabilities of the values; empty: all the same.
        alpha_max: without values, the largest strength.
        power: without values, the density is proportional to alpha ** -power.
    """
    device = generator.device
    if values:
        weights = torch.tensor(probs or [1.0] * len(values), dtype=torch.float64, device=device)
        places = torch.multinomial(weights, num, replacement=True, generator=generator) if num else weights[:0].long()
        return torch.tensor(values, dtype=torch.float32, device=device)[places]
    uniform = torch.rand(num, generator=generator, dtype=torch.float64, device=device)
    # the inverse of the distribution function (1 - alpha^(1-p)) / (1 - alpha_max^(1-p)), in logarithms as the powers
    # of a large p underflow; at p = 1 its limit
    steepness, log_max = 1 - power, math.log(alpha_max)
    if steepness * log_max == 0:
        log_alpha = uniform * log_max
    else:
        log_alpha = torch.log1p(uniform * math.expm1(steepness * log_max)) / steepness
    return log_alpha.exp().clamp(1, alpha_max).float()


def unconditional_weight(alpha: Float[Tensor, "C"], num_gen: int, num_unc: int) -> Float[Tensor, "C"]:
    """The weight (alpha - 1) (G - 1) / U of each unconditional negative; 0 without guidance.

    Together they then weigh alpha - 1 times as much as the G - 1 other generated samples that repel each one.

    Args:
        alpha: guidance strength of each class.
        num_gen: generated samples per class, G.
        num_unc: unconditional negatives per class, U; where there are none, nothing has the weight.
    """
    return (alpha - 1) * ((num_gen - 1) / max(num_unc, 1))
