"""What a masked autoencoder makes of images that training never saw."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.config import MaeConfig
from latentloom.drifting.images import Images
from latentloom.drifting.mae import LatentMae, draw_hidden, reconstruction_loss
from latentloom.runs.randomness import step_generator

_HELD_OUT_IMAGES = 1024  # enough for three digits of the loss


@torch.no_grad()
def held_out_loss(mae: LatentMae, images: Images, config: MaeConfig) -> float:
    """Mean squared error on hidden cells of the first held-out images, always the same ones, hidden the same way."""
    total, num_images = 0.0, min(len(images), _HELD_OUT_IMAGES)
    for rows in torch.arange(num_images).split(config.batch_size):
        samples, hidden, reconstructed = reconstruct(mae, images, rows, config)
        total += float(reconstruction_loss(reconstructed, samples, hidden).sum())
    return total / num_images


@torch.no_grad()
def reconstruct(
    mae: LatentMae, images: Images, rows: Int64[Tensor, "B"], config: MaeConfig
) -> tuple[Float[Tensor, "B C H W"], Bool[Tensor, "B H W"], Float[Tensor, "B C H W"]]:
    """Images, the cells hidden of them (the same each time), and what the autoencoder makes of the rest."""
    samples = images.load(rows)
    generator = step_generator(config.seed, int(rows[0]), "held-out masks")
    size = (samples.shape[2], samples.shape[3])
    hidden = draw_hidden(len(rows), size, config.mask_patch, config.mask_ratio, generator).to(samples.device)
    return samples, hidden, mae(samples, hidden).samples
