"""Latents are normalised by the VAE's statistics, and frames are bytes."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from latentloom.tensors import VideoLatents
from latentloom.wan.vae import decode_video, denormalize, encode_video, normalize, to_frames

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae(tiny_checkpoint) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(tiny_checkpoint / "vae").eval()


def test_normalising_uses_mean_and_deviation_of_each_channel(vae: AutoencoderKLWan):
    raw = torch.ones(1, 4, 1, 1, 1)
    expected = torch.tensor([(1 - 0.1) / 0.5, (1 + 0.2) / 1.0, (1 - 0.3) / 1.5, 1 / 2.0])
    torch.testing.assert_close(normalize(vae, raw).flatten(), expected)
    torch.testing.assert_close(denormalize(vae, normalize(vae, raw)), raw)


def test_encoding_gives_the_normalised_mean_of_the_posterior(vae: AutoencoderKLWan):
    frames = torch.randint(0, 256, (2, 5, 16, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = encode_video(vae, frames, CPU)
    assert latents.values.shape == (2, 4, 2, 2, 4)
    pixels = frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(pixels, return_dict=False)[0].mean
    torch.testing.assert_close(denormalize(vae, latents.values), raw, atol=1e-5, rtol=1e-5)


def test_decoding_gives_four_frames_per_latent_frame_after_the_first(vae: AutoencoderKLWan):
    frames = decode_video(vae, VideoLatents(torch.zeros(1, 4, 3, 2, 2)), CPU)
    assert frames.shape == (1, 9, 16, 16, 3)
    assert frames.dtype == torch.uint8


def test_pixels_are_rounded_and_clamped_to_bytes():
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 5, 1, 1).expand(1, 3, 5, 1, 1)
    assert to_frames(pixels)[0, :, 0, 0, 1].tolist() == [0, 0, 128, 255, 255]
