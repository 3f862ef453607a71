"""The token refiner of clips: keyframes with interpolated frames between them in, the whole clip out, in one step."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from latentloom.drifting.refiner import ALPHA_FREQUENCIES, ConditionedBlock, alpha_waves
from latentloom.errors import ShapeError
from latentloom.keyframes import interpolate_frames, patchify, unpatchify
from latentloom.runs import Config

#: What Muon leaves to Adam: layers between the data and the hidden channels, and what conditions the blocks.
ADAM_NAMES = ("patch_in", "patch_out", "position", "of_time", "of_alpha", "of_text", "to_condition")
TIME_FREQUENCIES = 16


class TokenRefinerShape(Config):
    """What rebuilds a refiner.

    Args:
        channels, num_frames, rows, columns: of a clip.
        patch: side of a token in cells of a frame.
        num_classes, num_levels: what it is conditioned on, besides the guidance strength.
        text_width: channels of a text token; None without texts.
        width, depth, num_heads: channels, blocks and attention heads.
        keep_anchors_fixed: whether given frames are put back unchanged.
        mixes_linear: whether it is also shown the linear interpolation, and says how much of it each token takes: for
            clips that are filled in another way, which is better in some places and worse in others.
    """

    channels: int
    num_frames: int
    rows: int
    columns: int
    patch: int
    num_classes: int
    num_levels: int
    text_width: int | None = None
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    keep_anchors_fixed: bool = True
    mixes_linear: bool = False


class TokenRefiner(nn.Module):
    """A transformer over all frames' tokens that corrects an interpolation in one step; at first it changes nothing.

    Args:
        shape: of clips, conditions and layers.

    Raises:
        ShapeError: the patch does not divide the frames.

    Source: the drifting document, 02-11, "Refiner input/output for this line"; blocks as in Peebles and Xie 2023,
    arXiv:2212.09748 (adaLN-Zero).
    """

    def __init__(self, shape: TokenRefinerShape) -> None:
        super().__init__()
        if shape.rows % shape.patch or shape.columns % shape.patch:
            raise ShapeError(
                f"patch_size = {shape.patch} does not divide frames of {shape.rows}x{shape.columns}; give one that does"
            )
        self.shape = shape
        width, values = shape.width, shape.channels * shape.patch**2
        num_places = (shape.rows // shape.patch) * (shape.columns // shape.patch)
        # two channels more: whether the frame is given, and how far it is to be trusted
        self.patch_in = nn.Linear(values * (2 if shape.mixes_linear else 1) + 2, width)
        self.position = nn.Parameter(torch.randn(num_places, width) * 0.02)
        self.of_time = nn.Linear(2 * TIME_FREQUENCIES, width)
        self.of_class = nn.Embedding(shape.num_classes, width)
        self.of_level = nn.Embedding(shape.num_levels, width)
        self.of_alpha = nn.Sequential(nn.Linear(2 * ALPHA_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.of_text = nn.Linear(shape.text_width, width) if shape.text_width else None
        self.blocks = nn.ModuleList(ConditionedBlock(width, shape.num_heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.to_condition = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, values + int(shape.mixes_linear))
        for layer in (self.patch_out, self.to_condition):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        filled: Float[Tensor, "B C T H W"],
        given: Bool[Tensor, "B T"],
        confidence: Float[Tensor, "B T"],
        classes: Int64[Tensor, "B"],
        level: Int64[Tensor, "B"],
        alpha: Float[Tensor, "B"],
        text: Float[Tensor, "B L E"] | None = None,
        text_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B C T H W"]:
        """Refined clips, in the dtype of `filled`.

        Args:
            filled: clips whose missing frames are interpolated.
            given: true where a frame is no interpolation.
            confidence: from 0 to 1, of each frame.
            classes: pseudo-class of each clip.
            level: of corruption.
            alpha: guidance strength, 1 or more.
            text: of the prompts, zero-padded; None leaves the prompt open.
            text_mask: true where a token is.
        """
        shape = self.shape
        tokens = self._tokens(filled)
        to_linear = None
        if shape.mixes_linear:
            # a clip whose keyframes are all another model's has no true frames to interpolate
            between = given | ~given.any(dim=1, keepdim=True)
            to_linear = self._tokens(interpolate_frames(filled, between, "linear")) - tokens
        about = torch.stack([given.to(tokens.dtype), confidence.to(tokens.dtype)], dim=-1)
        about = about.unsqueeze(2).expand(-1, -1, tokens.shape[2], -1)
        shown = [tokens, about] if to_linear is None else [tokens, to_linear, about]
        x = self.patch_in(torch.cat(shown, dim=-1))
        x = x + self.position + self.of_time(_time_waves(filled.shape[2], filled.device)).unsqueeze(1)
        condition = self.of_class(classes) + self.of_level(level) + self.of_alpha(alpha_waves(alpha))
        if self.of_text is not None and text is not None and text_mask is not None:
            condition = condition + self.of_text(_pooled(text, text_mask).to(condition.dtype))
        condition = F.silu(condition)
        batch, num_frames, num_places, _ = x.shape
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.to_condition(condition).unsqueeze(1).chunk(2, dim=-1)
        change = self.patch_out(self.norm(x) * (1 + scale) + shift).view(batch, num_frames, num_places, -1)
        change = change.to(filled.dtype)
        if to_linear is not None:
            change = change[..., :-1] + change[..., -1:] * to_linear
        refined = filled + self._clips(change)
        if not shape.keep_anchors_fixed:
            return refined
        return torch.where(given[:, None, :, None, None], filled, refined)

    def _tokens(self, clips: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B T N D"]:
        shape = self.shape
        if tuple(clips.shape[1:]) != (shape.channels, shape.num_frames, shape.rows, shape.columns):
            raise ShapeError(
                f"clips of shape {tuple(clips.shape[1:])} for a refiner of {shape.channels} channels, "
                f"{shape.num_frames} frames and {shape.rows}x{shape.columns} cells; give clips as it was trained on"
            )
        frames = clips.transpose(1, 2).flatten(0, 1)
        return patchify(frames, shape.patch).unflatten(0, clips.shape[:1] + clips.shape[2:3])

    def _clips(self, tokens: Float[Tensor, "B T N D"]) -> Float[Tensor, "B C T H W"]:
        shape = self.shape
        grid = (shape.rows // shape.patch, shape.columns // shape.patch)
        frames = unpatchify(tokens.flatten(0, 1), shape.patch, shape.channels, *grid)
        return frames.unflatten(0, tokens.shape[:2]).transpose(1, 2)


def _time_waves(num_frames: int, device: torch.device) -> Float[Tensor, "T K"]:
    """Sines and cosines of the frame's number."""
    rates = torch.exp(torch.linspace(0, math.log(1 / 64), TIME_FREQUENCIES, device=device))
    angles = torch.arange(num_frames, device=device).unsqueeze(1) * rates * math.pi / 2
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _pooled(text: Float[Tensor, "B L E"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
    """The mean of the true tokens; 0 where there is none."""
    weights = mask.float().unsqueeze(-1)
    return (text.float() * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
