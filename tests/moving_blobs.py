"""Clips of one disc that crosses the picture at a steady speed, and how well frames of them are filled in."""

import math

import torch


def moving_blobs(num: int, frames: int = 9, side: int = 24, distance: float = 9.0, seed: int = 0) -> torch.Tensor:
    """Clips [num, 3, frames, side, side] with values from -1 to 1; discs move `distance` pixels."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.rand(num, generator=generator) * 2 * math.pi
    time = torch.linspace(-0.5, 0.5, frames) * distance
    middle = side * (0.4 + 0.2 * torch.rand(num, 2, generator=generator))
    x, y = (middle[:, axis, None] + time * part[:, None] for axis, part in enumerate((angle.cos(), angle.sin())))
    pixel = torch.arange(side).float()
    away = torch.hypot(pixel - x[..., None, None], pixel[:, None] - y[..., None, None])
    inside = torch.sigmoid((side / 8 - away) * 1.5).unsqueeze(1)
    disc, ground = torch.rand(2, num, 3, 1, 1, 1, generator=generator) * 2 - 1
    return ground + inside * (disc - ground)


def missing_psnr(filled: torch.Tensor, clean: torch.Tensor, given: torch.Tensor) -> float:
    """Of missing frames in dB, for values from -1 to 1."""
    error = (filled - clean).square().mean(dim=(1, 3, 4))[~given].mean()
    return float(10 * torch.log10(4 / error))
