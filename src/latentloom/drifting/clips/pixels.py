"""Clips as frames that can be looked at, whichever space they are in."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float, UInt8
from torch import Tensor

from latentloom.drifting.images import bytes_from_pixels
from latentloom.errors import ConfigError
from latentloom.tensors import VideoLatents
from latentloom.wan.checkpoint_fingerprints import fingerprint_vae
from latentloom.wan.checkpoints import load_vae
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.vae import decode_video

FRAMES_AT_ONCE = 256


class ClipSpace:
    """What the numbers of clips mean.

    Args:
        space: "latent" or "pixel".
        frames: of latents: "each" frame encoded on its own, or the "clip" compressed in time.
        vae_root: checkpoint of the VAE; None is MicroWan.
        device: where the VAE computes.
        vae: fingerprint of the VAE that made the latents; None where it is not known.

    Raises:
        ConfigError: latents of another VAE than the one in `vae_root`.
    """

    def __init__(
        self,
        space: Literal["latent", "pixel"],
        frames: Literal["each", "clip"] | None,
        vae_root: Path | None,
        device: torch.device,
        vae: str | None = None,
    ) -> None:
        self.space: Literal["latent", "pixel"] = space
        self.frames: Literal["each", "clip"] | None = frames
        self.vae_root = vae_root or micro_wan_weights()
        self.device = device
        if space == "latent" and vae is not None and fingerprint_vae(self.vae_root) != vae:
            raise ConfigError(
                f"the VAE in {self.vae_root} did not make these latents; give the checkpoint that did to --ckpt-root"
            )

    @cached_property
    def vae(self) -> AutoencoderKLWan:
        """The VAE, in float32; read when it is first needed."""
        return load_vae(self.vae_root, torch.float32, self.device)

    def to_frames(self, clips: Float[Tensor, "B C T H W"]) -> UInt8[Tensor, "B F rows columns 3"]:
        """The clips' video frames, on the CPU."""
        if self.space == "pixel":
            return bytes_from_pixels(clips).permute(0, 2, 3, 4, 1).cpu().contiguous()
        if self.frames == "clip":
            return decode_video(self.vae, VideoLatents(clips.float()), self.device)
        single = clips.float().transpose(1, 2).flatten(0, 1).unsqueeze(2)
        parts = [decode_video(self.vae, VideoLatents(part), self.device) for part in single.split(FRAMES_AT_ONCE)]
        return torch.cat(parts).squeeze(1).unflatten(0, (clips.shape[0], clips.shape[2]))
