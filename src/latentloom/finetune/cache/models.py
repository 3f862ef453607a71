"""The models that a cache is computed with, loaded when something is missing and not before."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from latentloom.finetune.encoder_files import encoder_file, read_text_encoder
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
    def of(
        cls, ckpt_root: Path, device: torch.device, dtype: torch.dtype, text_encoder: Path | None = None
    ) -> "CacheModels":
        """The models of a checkpoint in any layout; the VAE computes in float32, as it does when clips are generated.

        Args:
            ckpt_root: the checkpoint.
            device: where the models compute.
            dtype: of the text encoder, and of what is stored.
            text_encoder: a trained encoder's file in place of the checkpoint's encoder.
        """

        def load_text_encoder() -> WanTextEncoder:
            model = read_text_encoder(ckpt_root, text_encoder, dtype, device)
            return WanTextEncoder(model, checkpoints.load_tokenizer(ckpt_root))

        return cls(
            vae=lambda: checkpoints.load_vae(ckpt_root, dtype=torch.float32, device=device),
            text_encoder=load_text_encoder,
            vae_fingerprint=lambda: fingerprint_vae(ckpt_root),
            text_fingerprint=lambda: _fingerprint(ckpt_root, text_encoder),
            device=device,
            dtype=dtype,
        )


def _fingerprint(ckpt_root: Path, text_encoder: Path | None) -> str:
    """Of the checkpoint's encoder, and of a trained one that stands in its place."""
    own = fingerprint_text_encoder(ckpt_root)
    if text_encoder is None:
        return own
    with encoder_file(text_encoder).open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return hashlib.sha256(f"{own} {digest}".encode()).hexdigest()[:16]
