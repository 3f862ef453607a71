"""Learning-rate factors as functions of the step, so that a seed reproduces a run on any machine."""

import math


def trapezoid(step: int, num_steps: int, *, warmup: int = 0, decay_share: float = 0.45) -> float:
    """Factor in (0, 1]: linear rise over `warmup` steps, a plateau, linear fall over the last `decay_share`.

    Args:
        step: from 0 to num_steps - 1.
        num_steps: length of the run.
        warmup: steps until the factor reaches 1.
        decay_share: share of the run, from 0 to 1, over which the factor falls towards 0.
    """
    rise = (step + 1) / warmup if step < warmup else 1.0
    decay_steps = decay_share * num_steps
    fall = (num_steps - step) / decay_steps if decay_steps > 0 else 1.0
    return min(rise, fall, 1.0)


def warmup_constant(step: int, *, warmup: int = 0) -> float:
    """Factor in (0, 1]: linear rise over `warmup` steps, then 1.

    Args:
        step: from 0.
        warmup: steps until the factor reaches 1.
    """
    return (step + 1) / warmup if step < warmup else 1.0


def warmup_cosine(step: int, num_steps: int, *, warmup: int = 0) -> float:
    """Factor in (0, 1]: linear rise over `warmup` steps, then half a cosine down to almost 0 at the last step.

    Args:
        step: from 0 to num_steps - 1.
        num_steps: length of the run; a warmup that is longer only rises.
        warmup: steps until the factor reaches 1.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, eq. 5, without restarts.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(num_steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
