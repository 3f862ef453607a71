"""Where two prompts differ: per token position and per channel, at one place of the model."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings

NUM_TOP = 10


@dataclass(frozen=True, eq=False)
class Apart:
    """How far two prompts are apart at one place.

    Args:
        place: in words.
        per_token: length of the difference at each position, as a multiple of the mean length of both prompts' tokens.
        per_channel: mean absolute difference over positions.
    """

    place: str
    per_token: Float[Tensor, "L"]
    per_channel: Float[Tensor, "D"]

    @property
    def top_channels(self) -> list[int]:
        """The channels that differ most, most first."""
        return self.per_channel.topk(min(NUM_TOP, len(self.per_channel))).indices.tolist()

    @property
    def top_share(self) -> float:
        """Their share of what all channels differ by; ten of D channels would have 10 / D if all differed alike."""
        total = float(self.per_channel.sum())
        return float(self.per_channel[self.top_channels].sum()) / total if total else 0.0


def measure_apart(
    place: str, first: TextEmbeddings, second: TextEmbeddings, pad: Float[Tensor, "D"] | None = None
) -> Apart:
    """Two prompts position by position, over as many as the longer one has.

    Args:
        place: in words.
        first, second: one prompt each.
        pad: what a padding row is at this place; None for zeros.

    Raises:
        ShapeError: prompts of different widths.
    """
    if first.dim != second.dim:
        raise ShapeError(f"prompts of {first.dim} and {second.dim} channels; encode both with one encoder")
    fill = torch.zeros(first.dim) if pad is None else pad.float()
    num_rows = max(len(first.tokens), len(second.tokens))
    a, b = (torch.cat([text.tokens.float(), fill.expand(num_rows - len(text.tokens), -1)]) for text in (first, second))
    length = torch.cat([first.tokens, second.tokens]).float().norm(dim=1).mean()
    tiny = torch.finfo(torch.float32).tiny
    return Apart(place, (a - b).norm(dim=1) / length.clamp_min(tiny), (a - b).abs().mean(dim=0))
