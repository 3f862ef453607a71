"""A sequence of prompts that leads from one to the next."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.embeddings.alignment import AlignMethod, align_operands, in_dtype, match_prompts
from latentloom.steering.embeddings.arithmetic import Combined, Operand, embeddings_of
from latentloom.steering.embeddings.token_pairs import TokenPairs, mix
from latentloom.tensors import TextEmbeddings

InterpolateMethod = Literal["linear", "spherical", "cubic"]
Block = Float[Tensor, "B P D"]
Curve = Callable[[int, float], Block]  # of the segment between two keys and the share of the way along it
MIN_STEPS, MAX_STEPS = 2, 20


def interpolate(
    *keys: Operand,
    method: InterpolateMethod = "linear",
    steps: int = 5,
    endpoints: bool = True,
    align: AlignMethod = "pad",
) -> Combined:
    """The whole sequence, as one batch of `steps` prompts per pair of prompts.

    Between two keys a and b, at a share t of the way:

    - linear: a + t (b - a).
    - spherical: token by token on the arc from a to b, the norm in proportion; straight where a token is zero or the
      two are parallel or opposite.
    - cubic: the Hermite curve (2t^3-3t^2+1) a + (t^3-2t^2+t) m_a + (3t^2-2t^3) b + (t^3-t^2) m_b that rests at the
      first and the last key (m = 0) and passes the others at m = (next - previous) / 2. Between two keys alone this
      is smoothstep, the straight line walked at 3t^2-2t^3; inside more of them, Catmull-Rom.

    Args:
        keys: two or more, of B prompts each or of one that serves all. The sequence of the first prompts comes
            first, then that of the second, and so on: B * steps prompts.
        method: see above.
        steps: how many prompts, 2 to 20, evenly spaced.
        endpoints: whether the first and the last of them are the outer keys, bit for bit, at their own lengths
            unless `align` cuts them; otherwise all lie between.
        align: what happens to different lengths.

    Raises:
        ConfigError: fewer than two keys, steps out of range, or an unknown method.
        ShapeError: keys that do not fit.

    Source: the activation editor document, WanVideoVectorInterpolation; Catmull and Rom 1974.
    """
    if len(keys) < 2:
        raise ConfigError(f"{len(keys)} embeddings to interpolate; give two or more")
    if not MIN_STEPS <= steps <= MAX_STEPS:
        raise ConfigError(f"steps={steps} is out of range; give {MIN_STEPS} to {MAX_STEPS}")
    if method not in CURVES:
        raise ConfigError(f"method={method!r} is unknown; use {', '.join(CURVES)}")
    matched = match_prompts([embeddings_of(key) for key in keys])
    aligned = align_operands(matched, align)
    common = torch.tensor(aligned.alignment.after)
    curve = CURVES[method](aligned.rows)
    frames, lengths = [], []
    for segment, share in _positions(len(keys), steps, endpoints):
        key = segment + int(share)
        is_key = share in (0.0, 1.0)
        frames.append(aligned.rows[key] if is_key else curve(segment, share))
        lengths.append(common.minimum(matched[key].lengths.cpu()) if is_key else common)
    sequence = torch.stack(frames, dim=1).flatten(0, 1)
    embeddings = TextEmbeddings.from_padded(sequence, torch.stack(lengths, dim=1).flatten())
    return Combined(in_dtype(embeddings, aligned.dtype), aligned.alignment)


def _positions(num_keys: int, steps: int, endpoints: bool) -> list[tuple[int, float]]:
    """Segment and share of each step, in whole numbers as far as possible: keys are met, not almost met."""
    parts, first = (steps - 1, 0) if endpoints else (steps + 1, 1)
    places = [divmod(step * (num_keys - 1), parts) for step in range(first, first + steps)]
    last = num_keys - 2
    return [(last, 1.0) if segment > last else (segment, rest / parts) for segment, rest in places]


def _linear(keys: Sequence[Block]) -> Curve:
    return lambda segment, share: torch.lerp(keys[segment], keys[segment + 1], share)


def _spherical(keys: Sequence[Block]) -> Curve:
    segments = [TokenPairs.of(first, second) for first, second in pairwise(keys)]
    straights = [pairs.straight().to(keys[0].device).bool().unsqueeze(-1) for pairs in segments]

    def curve(segment: int, share: float) -> Block:
        first, second = keys[segment], keys[segment + 1]
        # torch.lerp, unlike the weights of a straight line, gives equal tokens back as they are
        line = torch.lerp(first, second, share)
        return line.where(straights[segment], mix(first, second, segments[segment].slerp(share)))

    return curve


def _cubic(keys: Sequence[Block]) -> Curve:
    def curve(segment: int, share: float) -> Block:
        t = share
        rows = torch.lerp(keys[segment], keys[segment + 1], 3 * t**2 - 2 * t**3)
        if segment > 0:
            rows = rows + (t**3 - 2 * t**2 + t) / 2 * (keys[segment + 1] - keys[segment - 1])
        if segment + 2 < len(keys):
            rows = rows + (t**3 - t**2) / 2 * (keys[segment + 2] - keys[segment])
        return rows

    return curve


CURVES: dict[InterpolateMethod, Callable[[Sequence[Block]], Curve]] = {
    "linear": _linear,
    "spherical": _spherical,
    "cubic": _cubic,
}
