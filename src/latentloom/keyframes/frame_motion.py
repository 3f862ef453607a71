"""Where something changes from one given frame to the next."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.keyframes.frame_gaps import check_frames, nearest_given


def moving_share(
    values: Float[Tensor, "B C T H W"], given: Bool[Tensor, "B T"], tolerance: float
) -> Float[Tensor, "B 1 T H W"]:
    """How far each place of a missing frame is to be taken for moving: 0 where nothing changes around it, 1 at most.

    It is 1 - exp(-d²/2 tolerance²), where d is the root mean square over channels of the difference between the given
    frames before and after, the largest of the place and its eight neighbours. Where there is a given frame on one side
    alone, and in given frames, it is 1.

    Args:
        values: what stands at missing places is never read.
        given: true where a frame is given.
        tolerance: of differences, in the units of the values, above 0.

    Raises:
        ConfigError: a tolerance that is not above 0.
        ShapeError: the shapes do not fit together, or a clip has no given frame.
    """
    check_frames(values, given)
    if not tolerance > 0:
        raise ConfigError(f"tolerance = {tolerance}; give one above 0")
    left, right = nearest_given(given)
    frames = values.transpose(1, 2)
    rows = torch.arange(len(values), device=values.device).unsqueeze(1)
    squared = (frames[rows, right].float() - frames[rows, left].float()).square().mean(dim=2)
    around = F.max_pool2d(squared, 3, stride=1, padding=1)
    share = -torch.expm1(around / (-2 * tolerance**2))
    is_between = (left < right).view(*given.shape, 1, 1)
    return torch.where(is_between, share, 1.0).unsqueeze(1)
