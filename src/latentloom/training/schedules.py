"""Learning-rate factors as functions of the step, so that a seed reproduces a run on any machine."""


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
