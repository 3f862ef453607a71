"""MicroWan for ComfyUI's own nodes: `WAN21` around ComfyUI's own Wan transformer, a CLIP and a VAE."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor

from latentloom.comfy.core import module
from latentloom.errors import PromptError
from latentloom.micro import default_checkpoint
from latentloom.tensors import VideoLatents
from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer, load_transformer, load_vae
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, official_transformer_config
from latentloom.wan.pipeline import facts_of
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import decode_video, encode_video

ROWS = 512
"""Of a prompt, zeros after its end, as ComfyUI's own encoder gives them."""


def load_native_model() -> Any:
    """A `ModelPatcher` of ComfyUI's own Wan with MicroWan's weights, in float32; latents are normalised already."""
    bases, models = module("comfy.supported_models"), module("comfy.model_management")
    root = default_checkpoint()
    transformer = load_transformer(root, dtype=torch.float32)
    config = official_transformer_config(transformer.config)
    names = ("model_type", "dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "num_heads", "num_layers", "eps")
    sizes = {name: config[name] for name in names} | {"text_dim": transformer.config["text_dim"]}
    settings = bases.WAN21_T2V({"image_model": "wan2.1", **sizes})
    settings.latent_format = latent_format(config["in_dim"])
    settings.sampling_settings = {**settings.sampling_settings, "shift": facts_of(root).shift}
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model({}, device=models.unet_offload_device())
    weights = {TRANSFORMER_KEYS.to_official(name): tensor for name, tensor in transformer.state_dict().items()}
    model.diffusion_model.load_state_dict(weights)
    return module("comfy.model_patcher").ModelPatcher(
        model, load_device=models.get_torch_device(), offload_device=models.unet_offload_device()
    )


def latent_format(channels: int) -> Any:
    """ComfyUI's description of latents that are normalised already, and have no picture to preview them by."""
    base = module("comfy.latent_formats").LatentFormat
    return type("MicroWanLatents", (base,), {"latent_channels": channels, "latent_dimensions": 3})()


@dataclass(frozen=True, eq=False)
class MicroWanClip:
    """What ComfyUI's text nodes use of a CLIP, answered by MicroWan's encoder.

    Args:
        encoder: frozen.
    """

    encoder: WanTextEncoder

    @classmethod
    def load(cls) -> "MicroWanClip":
        """With the shipped weights."""
        root = default_checkpoint()
        return cls(WanTextEncoder(load_text_encoder(root, dtype=torch.float32), load_tokenizer(root)))

    def tokenize(self, text: str, **options: Any) -> dict[str, list[str]]:
        """The text itself: its encoder cuts it into tokens.

        Raises:
            PromptError: this is not one text.
        """
        if not isinstance(text, str):
            raise PromptError("MicroWan's text encoder takes one text at a time")
        return {"micro_wan": [text]}

    def encode_from_tokens_scheduled(self, tokens: dict[str, list[str]], **options: Any) -> list[list[Any]]:
        """A CONDITIONING of one prompt, padded with zeros."""
        rows = self.encoder.encode(tokens["micro_wan"]).padded(ROWS)
        return [[rows.float().cpu(), {"pooled_output": None}]]

    def clone(self) -> "MicroWanClip":
        """The same: nothing of it changes."""
        return self


@dataclass(frozen=True, eq=False)
class MicroWanVae:
    """What ComfyUI's nodes use of a VAE, answered by MicroWan's.

    Args:
        vae: frozen.
    """

    vae: AutoencoderKLWan

    @classmethod
    def load(cls) -> "MicroWanVae":
        """With the shipped weights."""
        return cls(load_vae(default_checkpoint(), dtype=torch.float32))

    def decode(self, latents: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B F Y X 3"]:
        """Clips from 0 to 1."""
        return decode_video(self.vae, VideoLatents(latents.float()), torch.device("cpu")).float() / 255

    def encode(self, images: Float[Tensor, "F Y X 3"]) -> Float[Tensor, "1 C T H W"]:
        """Latents of one clip; its frames are 4 k + 1, or cut to that."""
        frames = images[: (len(images) - 1) // 4 * 4 + 1, ..., :3]
        pixels = frames.mul(255).round().clamp(0, 255).byte()
        return encode_video(self.vae, pixels.unsqueeze(0), torch.device("cpu")).values
