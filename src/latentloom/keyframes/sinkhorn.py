"""Motion between two frames by soft matching of their tokens, and frames warped along it."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes.frame_gaps import check_frames, fill_gaps, find_gaps
from latentloom.keyframes.frame_warp import blend_along, warped_frames
from latentloom.runs import track

MOST_TOKENS = 256  # of a frame; larger frames are averaged to so many cells, as the matching takes their square
ITERATIONS = 8

# `feature` and `space` are temperatures, `landing` is how far around the place that it moves to a token is felt; these
# are logarithms, lengths in tokens. `relax` is the logit of how strictly each token is matched once, `lead` how much
# more tokens that move a token further count, `doubt` the logarithm of what `blend_along` takes.
START = {
    "feature": math.log(0.2),
    "space": math.log(4.0),
    "relax": 0.0,
    "landing": math.log(0.7),
    "lead": 1.0,
    "doubt": math.log(0.3),
}


class SinkhornWarper(nn.Module):
    """Fills in missing frames along a motion found by matching the tokens of the two given frames around them.

    A token is a cell of a frame with its eight neighbours. Tokens are matched by optimal transport with an entropy
    term, where unlike and distant tokens are costly; each moves to where its matches are on average. What is seen at a
    place between the frames moves as the tokens that pass there.

    Args:
        channels: of the clips that it will be fitted to; it then has a projection of tokens and temperatures to learn,
            and starts as the one without. None for fixed settings, no parameters, and clips of any channels.

    Raises:
        ConfigError: channels below 1.

    Source: Cuturi, "Sinkhorn distances" (NIPS 2013); Chizat et al., "Scaling algorithms for unbalanced optimal
    transport problems" (2018) for relaxed marginals.
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        if channels is not None and channels < 1:
            raise ConfigError(f"channels = {channels}; give 1 or more, or None for a warper that is not learned")
        self.channels = channels
        self.projection = None if channels is None else nn.Parameter(torch.eye(9 * channels))
        self.settings = nn.ParameterDict()
        if channels is not None:
            self.settings.update({name: nn.Parameter(torch.tensor(value)) for name, value in START.items()})

    def forward(self, values: Float[Tensor, "B C T H W"], given: Bool[Tensor, "B T"]) -> Float[Tensor, "B C T H W"]:
        """The clips with missing frames filled in; the nearest one is held before the first and after the last.

        Computed in float32, in float64 for float64 clips, whatever the warper's own dtype.

        Args:
            values: given frames come back bit for bit, what stands at missing places is never read.
            given: true where a frame is given.

        Raises:
            ShapeError: the shapes do not fit together, a clip has no given frame, or other channels than its own.
        """
        check_frames(values, given)
        if self.channels not in (None, values.shape[1]):
            raise ShapeError(
                f"clips {tuple(values.shape)} for a warper of {self.channels} channels; give [B, {self.channels}, "
                "T, H, W]"
            )
        exact = values.to(torch.promote_types(values.dtype, torch.float32))
        gaps = find_gaps(given, exact.dtype)
        with torch.autocast(values.device.type, enabled=False):
            return fill_gaps(values, gaps, warped_frames(exact, gaps, self.between))

    def between(
        self,
        first: Float[Tensor, "P C H W"],
        second: Float[Tensor, "P C H W"],
        pair: Int64[Tensor, "K"],
        share: Float[Tensor, "K"],
    ) -> Float[Tensor, "K C H W"]:
        """Frames between two others, warped along the motion of matched tokens and blended.

        Args:
            first: frames before, in float32 or float64.
            second: frames after.
            pair: which of the P pairs each frame lies between.
            share: of the way from first to second.
        """
        motion = self.motion(first, second, pair, share)
        return blend_along(first[pair], second[pair], share, motion, self._setting("doubt", first).exp())

    def motion(
        self,
        first: Float[Tensor, "P C H W"],
        second: Float[Tensor, "P C H W"],
        pair: Int64[Tensor, "K"],
        share: Float[Tensor, "K"],
    ) -> Float[Tensor, "K 2 H W"]:
        """By how many pixels, columns and rows, what is seen at a place of a frame between moves from first to second.

        Args:
            first: frames before, in float32 or float64.
            second: frames after.
            pair: which of the P pairs each frame lies between.
            share: of the way from first to second.
        """
        size = (first.shape[-2], first.shape[-1])
        grid = token_grid(size)
        place = torch.cartesian_prod(*(torch.arange(side, device=first.device, dtype=first.dtype) for side in grid))
        log_plan = self._log_plan(*self._tokens(first, second, grid), place)
        forth = log_plan.softmax(dim=2) @ place - place  # where each token of the first frame goes
        back = place - log_plan.softmax(dim=1).mT @ place  # where each of the second comes from
        moves = torch.cat([forth, back], dim=1)
        lead = self._setting("lead", first) * moves.square().sum(dim=2).clamp_min(1e-12).sqrt()
        moves, lead, share = moves[pair], lead[pair], share[:, None, None]
        forth, back = moves.chunk(2, dim=1)
        passing = torch.cat([place + share * forth, place - (1 - share) * back], dim=1)
        apart = _squared_distance(place, passing)
        weight = lead.unsqueeze(1) - 0.5 * apart * (-2 * self._setting("landing", first)).exp()
        scale = moves.new_tensor([size[1] / grid[1], size[0] / grid[0]])
        columns_rows = ((weight.softmax(dim=2) @ moves).flip(2) * scale).mT.unflatten(2, grid)
        return F.interpolate(columns_rows, size, mode="bilinear")

    def _tokens(self, first: Tensor, second: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        cells = F.adaptive_avg_pool2d(torch.stack([first, second]).flatten(0, 1), grid)
        around = F.unfold(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3).mT
        early, late = around.unflatten(0, (2, -1))
        both = torch.cat([early, late], dim=1)
        # in units of how much the tokens of these two frames differ at all
        spread = both.sub(both.mean(dim=1, keepdim=True)).square().mean(dim=(1, 2), keepdim=True)
        scale = spread.clamp_min(torch.finfo(spread.dtype).tiny * 1e8).rsqrt() / math.sqrt(around.shape[2])
        if self.projection is not None:
            early, late = early @ self.projection.to(early.dtype), late @ self.projection.to(late.dtype)
        return early * scale, late * scale

    def _log_plan(
        self, first: Float[Tensor, "K N D"], second: Float[Tensor, "K N D"], place: Float[Tensor, "N 2"]
    ) -> Float[Tensor, "K N N"]:
        unlike = _squared_distance(first, second) * (-self._setting("feature", first)).exp()
        far = _squared_distance(place, place) * 0.5 * (-2 * self._setting("space", first)).exp()
        kernel = -unlike - far
        strict = self._setting("relax", first).sigmoid()
        rows = kernel.new_zeros(kernel.shape[:2])
        columns = torch.zeros_like(rows)
        for _ in range(ITERATIONS):
            rows = -strict * (kernel + columns.unsqueeze(1)).logsumexp(dim=2)
            columns = -strict * (kernel + rows.unsqueeze(2)).logsumexp(dim=1)
        return kernel + rows.unsqueeze(2) + columns.unsqueeze(1)

    def _setting(self, name: str, like: Tensor) -> Tensor:
        return self.settings[name].to(like.dtype) if name in self.settings else like.new_tensor(START[name])


def _squared_distance(left: Float[Tensor, "*P N D"], right: Float[Tensor, "*K M D"]) -> Float[Tensor, "*K N M"]:
    # by products, as the derivative of a square root has no value at 0
    squares = left.square().sum(dim=-1).unsqueeze(-1) + right.square().sum(dim=-1).unsqueeze(-2)
    return (squares - 2 * left @ right.mT).clamp_min(0)


def token_grid(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of tokens for frames of this height and width: one per pixel, if they are not too many."""
    side = math.ceil(math.sqrt(size[0] * size[1] / MOST_TOKENS))
    return max(size[0] // side, 1), max(size[1] // side, 1)


def fit_warper(
    warper: SinkhornWarper,
    batches: Callable[[torch.Generator], tuple[Float[Tensor, "B C T H W"], Bool[Tensor, "B T"]]],
    steps: int,
    lr: float,
    generator: torch.Generator,
) -> list[float]:
    """Fit a warper to missing frames by their squared error, with Adam; the rate falls to 0 along half a cosine.

    Args:
        warper: changed in place; its parameters are best in float32.
        batches: draws clean clips, and true where a frame is given; called once a step with the generator.
        steps: of the optimizer, 1 or more.
        lr: learning rate of the first step, above 0.
        generator: of all draws.

    Returns:
        The mean squared error of missing frames in each step.

    Raises:
        ConfigError: a warper without parameters, no steps, or a rate that is not above 0.
        ShapeError: as the warper.
    """
    parameters = list(warper.parameters())
    if not parameters:
        raise ConfigError("a warper without channels has nothing to fit; give SinkhornWarper(channels)")
    if steps < 1 or not 0 < lr < math.inf:
        raise ConfigError(f"steps = {steps}, lr = {lr}; give 1 or more steps and a rate above 0")
    optimizer = torch.optim.Adam(parameters, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    errors = []
    for _ in track(steps, "fit warper"):
        values, given = batches(generator)
        squared = (warper(values, given).float() - values.float()).square().mean(dim=(1, 3, 4))
        error = (squared * ~given).sum() / (~given).sum().clamp_min(1)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        schedule.step()
        errors.append(error.detach())
    return torch.stack(errors).tolist()
