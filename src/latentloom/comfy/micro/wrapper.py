"""MicroWan for ComfyUI-WanVideoWrapper's nodes: its own transformer, a text encoder and a VAE as it uses them."""

import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.comfy.core import module
from latentloom.comfy.micro.native import latent_format
from latentloom.errors import ConfigError
from latentloom.micro import default_checkpoint
from latentloom.wan.checkpoints import load_text_encoder, load_tokenizer, load_transformer, load_vae
from latentloom.wan.keys_transformer import TRANSFORMER_KEYS, official_transformer_config
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import denormalize, normalize

CLIP_LATENTS = (16, 3, 6, 6)
"""[C, T, H, W] of the clips that MicroWan was trained on: 9 frames of 48 x 48 pixels."""
LOADER = "WanVideoModelLoader"
NAMES = ("WanModel", "WanVideoModel", "WanVideoModelConfig", "init_empty_weights")
"""What is used of the file in which the wrapper loads its models."""


def load_wrapper_model() -> Any:
    """A WANVIDEOMODEL in the state that the wrapper's own loader leaves: its weights come with the first run.

    Raises:
        ConfigError: the wrapper is not installed, or is another version than this was written for.
    """
    loading, models = _loading(), module("comfy.model_management")
    device, offload_device = models.get_torch_device(), models.unet_offload_device()
    transformer = load_transformer(default_checkpoint(), dtype=torch.float32)
    config = official_transformer_config(transformer.config)
    model = _empty_model(loading, config, transformer.config["text_dim"], device, offload_device)
    patcher = module("comfy.model_patcher").ModelPatcher(model, device, offload_device)
    weights = {TRANSFORMER_KEYS.to_official(name): tensor for name, tensor in transformer.state_dict().items()}
    for name, value in _pipeline(weights).items():
        model[name] = value
    # these two the sampler asks for, whether or not a node set them
    patcher.model_options["transformer_options"] = {"block_swap_args": None, "merge_loras": True}
    return patcher


def load_wrapper_text_encoder() -> dict[str, Any]:
    """A WANTEXTENCODER."""
    root = default_checkpoint()
    encoder = WanTextEncoder(load_text_encoder(root, dtype=torch.float32), load_tokenizer(root))
    return {"model": WrapperTextEncoder(encoder), "dtype": torch.float32, "name_or_path": "MicroWan"}


def empty_clip() -> dict[str, Any]:
    """WANVIDIMAGE_EMBEDS for one clip from text alone, of the size that MicroWan knows."""
    num_frames = 4 * (CLIP_LATENTS[1] - 1) + 1
    return {"target_shape": CLIP_LATENTS, "num_frames": num_frames, "control_embeds": None}


class WrapperTextEncoder:
    """What the wrapper's text nodes use of a T5, answered by MicroWan's encoder.

    Args:
        encoder: its model is moved and written anew by these nodes, with its own values.
    """

    quantization = "disabled"
    dtype = torch.float32

    def __init__(self, encoder: WanTextEncoder) -> None:
        self._encoder = encoder

    @property
    def model(self) -> nn.Module:
        """The encoder's weights."""
        return self._encoder.model

    def __call__(self, texts: Sequence[str], device: torch.device) -> list[Float[Tensor, "L D"]]:
        """The rows of each text, without padding."""
        return [rows.to(device) for rows in self._encoder.encode(list(texts)).to_list()]


@dataclass(frozen=True, eq=False)
class WrapperVae:
    """What the wrapper's nodes use of a VAE, answered by MicroWan's.

    Args:
        vae: frozen. Its clips are smaller than a tile, so they are never cut into tiles.
    """

    vae: AutoencoderKLWan
    dtype = torch.float32
    upsampling_factor = 8
    z_dim = 16

    @classmethod
    def load(cls) -> "WrapperVae":
        """With the shipped weights."""
        return cls(load_vae(default_checkpoint(), dtype=torch.float32))

    def to(self, device: torch.device) -> "WrapperVae":
        """The same, with its weights on the device; asked for before each use."""
        nn.Module.to(self.vae, device)
        return self

    @torch.no_grad()
    def decode(
        self, latents: Iterable[Float[Tensor, "C T H W"]], device: torch.device, end_: bool = False, **options: Any
    ) -> list[Float[Tensor, "3 F Y X"]]:
        """Clips from -1 to 1.

        Raises:
            ConfigError: the latents end with those of an image.
        """
        _refuse_end_image(end_)
        return [self._decoded(one.to(device, self.dtype)) for one in latents]

    @torch.no_grad()
    def encode(
        self, videos: Iterable[Float[Tensor, "3 F Y X"]], device: torch.device, end_: bool = False, **options: Any
    ) -> Float[Tensor, "B C T H W"]:
        """Normalised latents of clips from -1 to 1; frames beyond 4 k + 1 are left out.

        Raises:
            ConfigError: the clips end with an image.
        """
        _refuse_end_image(end_)
        whole = [video[:, : (video.shape[1] - 1) // 4 * 4 + 1].to(device, self.dtype) for video in videos]
        means = [self.vae.encode(video.unsqueeze(0), return_dict=False)[0].mode() for video in whole]
        return torch.cat([normalize(self.vae, mean) for mean in means])

    def _decoded(self, latents: Float[Tensor, "C T H W"]) -> Float[Tensor, "3 F Y X"]:
        return self.vae.decode(denormalize(self.vae, latents.unsqueeze(0)), return_dict=False)[0][0]


def _refuse_end_image(end: bool) -> None:
    if end:
        raise ConfigError("MicroWan makes clips from text alone; remove the end image")


def _loading() -> Any:
    """The wrapper's module that loads models."""
    loader = module("nodes").NODE_CLASS_MAPPINGS.get(LOADER)
    if loader is None:
        raise ConfigError(f"there is no node {LOADER}; install ComfyUI-WanVideoWrapper and restart ComfyUI")
    loading = sys.modules[loader.__module__]
    missing = [name for name in NAMES if not hasattr(loading, name)]
    if missing:
        raise ConfigError(f"this version of ComfyUI-WanVideoWrapper has no {missing[0]}; update it or LatentLoom")
    return loading


def _empty_model(loading: Any, config: dict[str, Any], text_dim: int, device: Any, offload_device: Any) -> Any:
    """The wrapper's model with weights on the meta device."""
    same = ("model_type", "dim", "ffn_dim", "freq_dim", "in_dim", "out_dim", "text_len", "num_heads", "num_layers")
    with loading.init_empty_weights():
        transformer = loading.WanModel(
            **{name: config[name] for name in same},
            in_features=config["dim"],
            out_features=config["dim"],
            ffn2_dim=config["ffn_dim"],
            text_dim=text_dim,
            eps=config["eps"],
            attention_mode="sdpa",
            rope_func="comfy",
            main_device=device,
            offload_device=offload_device,
            dtype=torch.float32,
        ).eval()
    latents = latent_format(config["in_dim"])
    if "transformer" in inspect.signature(loading.WanVideoModel.__init__).parameters:
        model = loading.WanVideoModel(
            loading.WanVideoModelConfig(latent_format=latents), transformer=transformer, device=device
        )
    else:  # until February 2026
        kind = module("comfy.model_base").ModelType.FLOW
        settings = loading.WanVideoModelConfig(torch.float32, latent_format=latents)
        model = loading.WanVideoModel(settings, model_type=kind, device=device)
        model.diffusion_model = transformer
    model.load_device, model.is_patched = offload_device, False
    return model


def _pipeline(weights: Mapping[str | None, Tensor]) -> dict[str, Any]:
    """What the wrapper's loader notes on its model for the sampler."""
    return {
        "base_dtype": torch.float32,
        "weight_dtype": torch.float32,
        "base_path": str(default_checkpoint()),
        "model_name": "MicroWan",
        "quantization": "disabled",
        "auto_cpu_offload": False,
        "control_lora": False,
        "compile_args": None,
        "gguf_reader": None,
        "fp8_matmul": False,
        "scale_weights": {},
        "sd": weights,
        "lora": None,
    }
