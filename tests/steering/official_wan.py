"""Wan's transformer in the official naming, as small as it can be: what the stand-ins for ComfyUI's hosts share.

Written from the Wan report (arXiv 2503.20314) with the names of its checkpoints, so that the weights of diffusers'
transformer fit and velocities can be compared.
"""

import math
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import functional as F

from latentloom.wan.keys_transformer import TRANSFORMER_KEYS

TEXT_LEN = 512


class Attention(nn.Module):
    """Weights of an attention layer; the hosts write the forward of their cross-attention."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)

    def attend(self, x: Tensor, context: Tensor, freqs: Tensor | None = None) -> Tensor:
        query, key, value = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        query, key, value = (rows.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for rows in (query, key, value))
        if freqs is not None:
            query, key = rotated(query, freqs), rotated(key, freqs)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class SelfAttention(Attention):
    """Over video tokens, with rotary positions."""

    def forward(self, x: Tensor, freqs: Tensor) -> Tensor:
        return self.o(self.attend(x, x, freqs))


class OfficialBlock(nn.Module):
    """The parts of a block; the hosts write its forward."""

    cross_attention: type[Attention] = Attention

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps)
        self.cross_attn = self.cross_attention(dim, num_heads, eps)
        self.norm2 = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))


class Head(nn.Module):
    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps, elementwise_affine=False)
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation + e.unsqueeze(1)).chunk(2, dim=1)
        return self.head(self.norm(x) * (1 + scale) + shift)


class OfficialWan(nn.Module):
    """The parts of a transformer; the hosts write its forward.

    Args:
        config: of diffusers' transformer.
    """

    block: type[OfficialBlock] = OfficialBlock

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.num_heads = config["num_attention_heads"]
        self.dim = dim = self.num_heads * config["attention_head_dim"]
        self.text_dim, self.freq_dim, self.text_len = config["text_dim"], config["freq_dim"], TEXT_LEN
        self.in_dim, self.out_dim = config["in_channels"], config["out_channels"]
        self.patch_size = tuple(config["patch_size"])
        self.patch_embedding = nn.Conv3d(config["in_channels"], dim, self.patch_size, self.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(self.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(self.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            self.block(dim, config["ffn_dim"], self.num_heads, config["eps"]) for _ in range(config["num_layers"])
        )
        self.head = Head(dim, config["out_channels"] * math.prod(self.patch_size), config["eps"])

    @classmethod
    def from_diffusers(cls, transformer: WanTransformer3DModel) -> Any:
        """The same model with the same weights."""
        model = cls(dict(transformer.config))
        weights = {str(TRANSFORMER_KEYS.to_official(key)): value for key, value in transformer.state_dict().items()}
        model.load_state_dict(weights)
        return model.eval()

    def embedded(self, x: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, torch.Size]:
        """Video tokens, the timestep's two embeddings, rotary angles, and the grid of the tokens."""
        patches = self.patch_embedding(x)
        e = self.time_embedding(sinusoid(self.freq_dim, timestep).to(x.dtype))
        e0 = self.time_projection(e).unflatten(1, (6, self.dim))
        freqs = rotary_angles(patches.shape[2:], self.dim // self.num_heads).to(x.device)
        return patches.flatten(2).transpose(1, 2), e, e0, freqs, patches.shape[2:]

    def unpatchified(self, x: Tensor, grid: torch.Size) -> Tensor:
        """Tokens of the head [B, S, P C] as clips [B, C, T, H, W]."""
        tokens = x.unflatten(2, (*self.patch_size, -1)).unflatten(1, grid)
        clips = torch.einsum("bfhwpqrc->bcfphqwr", tokens)
        return clips.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def sinusoid(freq_dim: int, timestep: Tensor) -> Tensor:
    half = freq_dim // 2
    angles = timestep.double()[:, None] * 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def rotary_angles(grid: torch.Size, head_dim: int) -> Tensor:
    """Unit complex numbers [S, head_dim / 2]: each pair of channels turns with the frame, the row or the column."""
    space = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * space, space, space)):
        rates = 10000 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        turned = torch.arange(grid[axis], dtype=torch.float64)[:, None] * rates
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        angles.append(turned.view(shape).expand(*grid, dim // 2))
    joined = torch.cat(angles, dim=-1).flatten(0, 2)
    return torch.polar(torch.ones_like(joined), joined)


def rotated(rows: Tensor, freqs: Tensor) -> Tensor:
    pairs = torch.view_as_complex(rows.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * freqs).flatten(-2).to(rows.dtype)
