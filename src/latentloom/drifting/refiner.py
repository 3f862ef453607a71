"""The one-step refiner: interpolated patches in, refined patches out."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from latentloom.runs import Config

#: What Muon leaves to Adam: layers between the data and the hidden channels, and what conditions the blocks.
ADAM_NAMES = ("patch_in", "patch_out", "position", "of_alpha", "to_condition")
ALPHA_FREQUENCIES = 16


class RefinerShape(Config):
    """What rebuilds a refiner.

    Args:
        num_patches, num_values: patches of an image, and numbers in each.
        num_classes, num_levels: what it is conditioned on, besides the guidance strength.
        width, depth, num_heads: channels, blocks and attention heads.
        keep_anchors_fixed: whether given patches are put back unchanged.
    """

    num_patches: int
    num_values: int
    num_classes: int
    num_levels: int
    width: int = 128
    depth: int = 4
    num_heads: int = 4
    keep_anchors_fixed: bool = False


class PatchRefiner(nn.Module):
    """A transformer over patch tokens that corrects an interpolation in one step; at first it changes nothing.

    Args:
        shape: of tokens, conditions and layers.

    Source: the blocks are those of Peebles and Xie 2023, arXiv:2212.09748 (adaLN-Zero).
    """

    def __init__(self, shape: RefinerShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        # one channel more, which tells given patches from missing ones
        self.patch_in = nn.Linear(shape.num_values + 1, width)
        self.position = nn.Parameter(torch.randn(shape.num_patches, width) * 0.02)
        self.of_class = nn.Embedding(shape.num_classes, width)
        self.of_level = nn.Embedding(shape.num_levels, width)
        self.of_alpha = nn.Sequential(nn.Linear(2 * ALPHA_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(ConditionedBlock(width, shape.num_heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.to_condition = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, shape.num_values)
        for layer in (self.patch_out, self.to_condition):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        given: Bool[Tensor, "B N"],
        classes: Int64[Tensor, "B"],
        level: Int64[Tensor, "B"],
        alpha: Float[Tensor, "B"],
    ) -> Float[Tensor, "B N D"]:
        """Refined patches, in the dtype of `tokens`.

        Args:
            tokens: interpolated patches.
            given: which of them are no interpolation.
            classes: class of each image.
            level: of corruption.
            alpha: guidance strength, 1 or more.
        """
        x = self.patch_in(torch.cat([tokens, given.unsqueeze(-1).to(tokens.dtype)], dim=-1)) + self.position
        condition = self.of_class(classes) + self.of_level(level) + self.of_alpha(alpha_waves(alpha))
        condition = F.silu(condition)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.to_condition(condition).unsqueeze(1).chunk(2, dim=-1)
        refined = tokens + self.patch_out(self.norm(x) * (1 + scale) + shift).to(tokens.dtype)
        return torch.where(given.unsqueeze(-1), tokens, refined) if self.shape.keep_anchors_fixed else refined


class ConditionedBlock(nn.Module):
    """Self-attention and MLP, each scaled, shifted and gated by the condition; at first it changes nothing.

    Args:
        width: channels, W.
        num_heads: a divisor of them.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.to_condition = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.to_condition.weight)
        nn.init.zeros_(self.to_condition.bias)

    def forward(self, x: Float[Tensor, "B N W"], condition: Float[Tensor, "B W"]) -> Float[Tensor, "B N W"]:
        parts = self.to_condition(condition).unsqueeze(1).chunk(6, dim=-1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self._attend(self.attention_norm(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(self.mlp_norm(x) * (1 + mlp_scale) + mlp_shift)

    def _attend(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        batch, num_tokens, width = x.shape
        heads = self.qkv(x).view(batch, num_tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, num_tokens, width))


def alpha_waves(alpha: Float[Tensor, "B"]) -> Float[Tensor, "B K"]:
    """Sines and cosines of log(alpha), which is 0 without guidance."""
    rates = torch.exp(torch.linspace(0, math.log(32), ALPHA_FREQUENCIES, device=alpha.device))
    angles = alpha.log().unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
