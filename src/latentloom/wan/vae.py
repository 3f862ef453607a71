"""Clips to normalised latents and back through Wan's VAE."""

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float, UInt8
from torch import Tensor

from latentloom.tensors import VideoLatents


@torch.no_grad()
def encode_video(vae: AutoencoderKLWan, frames: UInt8[Tensor, "B T H W 3"], device: torch.device) -> VideoLatents:
    """Encode clips into the latents the transformer is trained on: the posterior's mean, normalised per channel.

    Args:
        vae: Wan's VAE; computes in its own dtype.
        frames: T = 4k+1 frames of RGB.
        device: where the VAE computes.
    """
    pixels = frames.to(device).permute(0, 4, 1, 2, 3).to(vae.dtype) / 127.5 - 1
    return VideoLatents(normalize(vae, vae.encode(pixels, return_dict=False)[0].mode()))


@torch.no_grad()
def decode_video(vae: AutoencoderKLWan, latents: VideoLatents, device: torch.device) -> UInt8[Tensor, "B T H W 3"]:
    """Decode normalised latents into clips on the CPU.

    Args:
        vae: Wan's VAE; computes in its own dtype.
        latents: T latent frames become 4(T-1)+1 frames.
        device: where the VAE computes.
    """
    pixels = vae.decode(denormalize(vae, latents.values.to(device)).to(vae.dtype), return_dict=False)[0]
    return to_frames(pixels).cpu()


def normalize(vae: AutoencoderKLWan, values: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Shift and scale raw VAE latents to zero mean and unit deviation per channel, by the VAE's own statistics."""
    mean, deviation = _statistics(vae, values)
    return ((values.float() - mean) / deviation).to(values.dtype)


def denormalize(vae: AutoencoderKLWan, values: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Undo `normalize`."""
    mean, deviation = _statistics(vae, values)
    return (values.float() * deviation + mean).to(values.dtype)


def to_frames(pixels: Float[Tensor, "B 3 T H W"]) -> UInt8[Tensor, "B T H W 3"]:
    """Turn pixels from -1 to 1 into bytes, frames last-channel."""
    scaled = ((pixels.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def _statistics(
    vae: AutoencoderKLWan, values: Float[Tensor, "B C T H W"]
) -> tuple[Float[Tensor, "1 C 1 1 1"], Float[Tensor, "1 C 1 1 1"]]:
    mean, deviation = (
        torch.tensor(numbers, dtype=torch.float32, device=values.device).view(1, -1, 1, 1, 1)
        for numbers in (vae.config["latents_mean"], vae.config["latents_std"])
    )
    return mean, deviation
