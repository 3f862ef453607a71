"""Clips as frames that can be looked at, whichever space they are in."""

from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float, UInt8
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.data import ClipData
from latentloom.drifting.images import bytes_from_pixels
from latentloom.drifting.latent_data import ImageVae
from latentloom.errors import ConfigError
from latentloom.tensors import VideoLatents
from latentloom.wan.checkpoint_fingerprints import fingerprint_vae
from latentloom.wan.checkpoints import load_vae
from latentloom.wan.layouts import recognise
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
            raise ConfigError(f"the VAE in {self.vae_root} did not make these latents; give the checkpoint that did")

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


def known_space(
    data: ClipData, vae_root: Path | None, device: torch.device, *, single_frames: bool = False
) -> ClipSpace | None:
    """What the numbers of a training's clips mean; None for latents whose VAE is not known.

    It is known where `vae_root` names it, or where the shards say that it is MicroWan's.

    Args:
        data: the clips.
        vae_root: checkpoint of the VAE that made the latents; None where none is named.
        device: where the VAE computes.
        single_frames: whether frames are looked at on their own, also where the VAE compressed time.

    Raises:
        ConfigError: the VAE in `vae_root` is not the one that the shards name, or makes latents of other channels.
        FileError, CheckpointError: there is no such checkpoint, or no VAE in it.
    """
    if data.space == "pixel":
        return ClipSpace("pixel", None, None, device)
    manifest = data.manifest
    made_by = manifest.vae if manifest is not None else None
    if vae_root is None and (made_by is None or made_by != fingerprint_vae(micro_wan_weights())):
        return None
    frames = "each" if single_frames else manifest.frames if manifest is not None else "clip"
    space = ClipSpace("latent", frames, vae_root, device, made_by)
    found, channels = ImageVae(vae_root, device).channels, data.train.shape[0]
    if found != channels:
        raise ConfigError(
            f"the VAE in {vae_root} makes latents of {found} channels, and the clips have {channels}; give the "
            "checkpoint that made them"
        )
    return space


def vae_root(config: ClipConfig) -> Path | None:
    """The checkpoint that the settings name a VAE by; None where they name none, or a Wan DiT without a VAE.

    Raises:
        FileError, CheckpointError: there is no such checkpoint.
    """
    if config.ckpt_root is None or config.backbone == "tokens":
        return config.ckpt_root
    roles = {component.role for component in recognise(config.ckpt_root).components}
    return config.ckpt_root if "vae" in roles else None
