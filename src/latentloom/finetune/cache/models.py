"""The models that a cache is computed with, loaded when something is missing and not before."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from latentloom.wan import checkpoints
from latentloom.wan.checkpoint_fingerprints import fingerprint_text_encoder, fingerprint_vae
from latentloom.wan.text_encoder import WanTextEncoder


@dataclass(frozen=True)
class CacheModels:
    """How to get the models, and what identifies them without loading them.

    Args:
        vae, text_encoder: load the model; called once, and only if something must be computed with it.
        vae_fingerprint, text_fingerprint: identify what these would load.
        device: where they compute.
        dtype: of what is stored, float32 or bfloat16.
    """

    vae: Callable[[], AutoencoderKLWan]
    text_encoder: Callable[[], WanTextEncoder]
    vae_fingerprint: Callable[[], str]
    text_fingerprint: Callable[[], str]
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, ckpt_root: Path, device: torch.device, dtype: torch.dtype) -> "CacheModels":
        """The models of a checkpoint in any layout; the VAE computes in float32, as it does when clips are generated.

        Args:
            ckpt_root: the checkpoint.
            device: where the models compute.
            dtype: of the text encoder, and of what is stored.
        """

        def load_text_encoder() -> WanTextEncoder:
            model = checkpoints.load_text_encoder(ckpt_root, dtype=dtype, device=device)
            return WanTextEncoder(model, checkpoints.load_tokenizer(ckpt_root))

        return cls(
            vae=lambda: checkpoints.load_vae(ckpt_root, dtype=torch.float32, device=device),
            text_encoder=load_text_encoder,
            vae_fingerprint=lambda: fingerprint_vae(ckpt_root),
            text_fingerprint=lambda: fingerprint_text_encoder(ckpt_root),
            device=device,
            dtype=dtype,
        )
