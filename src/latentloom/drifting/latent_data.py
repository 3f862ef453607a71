"""Images as a VAE's latents: computed once, kept in a file, and turned back into pixels."""

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from jaxtyping import Float, Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentloom.drifting.images import Images, TensorImages, bytes_from_pixels, pixels_from_bytes
from latentloom.errors import CheckpointError, ConfigError, FileError
from latentloom.runs import is_distributed, process_rank, track
from latentloom.storage import atomic_write, read_header, require_writable
from latentloom.tensors import VideoLatents
from latentloom.wan.checkpoint_fingerprints import fingerprint_vae
from latentloom.wan.checkpoints import load_vae, recognise
from latentloom.wan.fingerprint import fingerprint
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.vae import decode_video, encode_video

logger = logging.getLogger(__name__)

PIXELS_AT_ONCE = 2**20  # of all images that the VAE computes together; 16 of 256 by 256
IMAGES_AT_ONCE = 64
SECONDS_BETWEEN_LOOKS = 1.0


class ImageVae:
    """A Wan VAE for single images; its weights are read when they are first needed.

    Args:
        root: the checkpoint; None is MicroWan.
        device: where it computes.

    Raises:
        CheckpointError: there is no VAE.
    """

    def __init__(self, root: Path | None, device: torch.device) -> None:
        self.root = root or micro_wan_weights()
        self.device = device
        component = recognise(self.root).component("vae")
        config = {**component.derived_config, **component.config}
        self.channels = int(config["z_dim"])
        self.stride = int(config["scale_factor_spatial"])
        self.temporal_stride = int(config["scale_factor_temporal"])

    @cached_property
    def fingerprint(self) -> str:
        """Tells this VAE from others."""
        return fingerprint_vae(self.root)

    @cached_property
    def model(self) -> AutoencoderKLWan:
        """The VAE, in float32."""
        return load_vae(self.root, torch.float32, self.device)

    def require_size(self, size: int) -> None:
        """Return if images of `size` by `size` pixels can be encoded.

        Raises:
            ConfigError: `size` is no multiple of the VAE's stride.
        """
        if size % self.stride:
            raise ConfigError(
                f"image_size = {size} is not a multiple of {self.stride}, the stride of the VAE in {self.root}; give "
                f"{max(1, round(size / self.stride)) * self.stride}"
            )

    def encode(self, images: Images) -> Float[Tensor, "N C H W"]:
        """Normalised latents of all images, in float32 on the CPU; grey images are encoded as RGB."""
        _, height, width = images.shape
        self.require_size(height)
        self.require_size(width)
        latents = torch.empty(len(images), self.channels, height // self.stride, width // self.stride)
        batches = torch.arange(len(images)).split(_num_at_once(height * width))
        with ThreadPoolExecutor(1, "load") as pool:  # the next batch is loaded while the VAE computes
            loading = pool.submit(images.load, batches[0])
            for number in track(len(batches), "encoding images"):
                pixels = loading.result()
                if number + 1 < len(batches):
                    loading = pool.submit(images.load, batches[number + 1])
                frames = bytes_from_pixels(pixels).expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
                encoded = encode_video(self.model, frames.unsqueeze(1), self.device)
                latents[batches[number]] = encoded.values.squeeze(2).cpu()
        return latents

    def decode(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 rows columns"]:
        """Pixels from -1 to 1 of normalised latents, on the device of the latents."""
        if not len(latents):
            return latents.new_empty(0, 3, *(side * self.stride for side in latents.shape[-2:]))
        num_at_once = _num_at_once(latents.shape[-2] * latents.shape[-1] * self.stride**2)
        clips = [VideoLatents.from_image(part.float()) for part in latents.split(num_at_once)]
        frames = torch.cat([decode_video(self.model, clip, self.device) for clip in clips])
        return pixels_from_bytes(frames.squeeze(1).permute(0, 3, 1, 2)).to(latents.device)


def latents_of(
    images_fingerprint: str, open_images: Callable[[], Images], vae: ImageVae, cache: Path | None
) -> TensorImages:
    """The latents of a set of images: out of the cache if it is there, otherwise computed, and kept in the cache.

    Of several processes the first computes the cache, and the others wait for it.

    Args:
        images_fingerprint: of the images.
        open_images: opens them, which is not needed where the cache has them.
        vae: what encodes.
        cache: safetensors file; None keeps the latents in memory, in every process its own.

    Raises:
        FileError: the cache holds latents of other images or of another VAE.
    """
    if cache is None:
        if is_distributed():
            logger.warning("every process encodes all images for itself; give latent_cache to encode them once")
        images = open_images()
        latents = vae.encode(images)
        return TensorImages(latents, images.labels, images.class_names, images_fingerprint, images.is_mirrored)
    if not cache.exists() and process_rank() == 0:
        _write(open_images(), vae, cache)
    if not cache.exists():
        logger.info("waiting for the first process to write %s", cache)
    while not cache.exists():  # a collective would time out: encoding takes hours
        time.sleep(SECONDS_BETWEEN_LOOKS)
    latents = read_latents(cache)
    kept, made_by = latents.fingerprint, latents.vae_fingerprint
    if kept != images_fingerprint or made_by != vae.fingerprint:
        is_of_others = kept != images_fingerprint
        what = "of other images, or of these before they changed" if is_of_others else "made by another VAE"
        raise FileError(f"{cache} holds latents {what}; give another latent_cache, or delete it")
    return latents


def cache_latents(images: Images, vae_root: Path | None, path: Path, device: torch.device) -> None:
    """Encode all images and write a file that `read_latents`, and `dataset = latents`, read.

    Args:
        images: pixels.
        vae_root: checkpoint with the VAE; None is MicroWan.
        path: safetensors file; one that is there is replaced.
        device: where the VAE computes.

    Raises:
        CheckpointError: there is no VAE.
        ConfigError: a size that the VAE cannot encode.
        FileError: the place cannot be written to.
    """
    _write(images, ImageVae(vae_root, device), path)


class LatentImages(TensorImages):
    """Latents out of a file.

    Args:
        values, labels, class_names, fingerprint, is_mirrored: see TensorImages.
        vae_fingerprint: of the VAE that made them; empty where the file does not say.
    """

    def __init__(
        self,
        values: Float[Tensor, "N C H W"],
        labels: Int64[Tensor, "N"],
        class_names: tuple[str, ...],
        fingerprint: str,
        is_mirrored: bool,
        vae_fingerprint: str,
    ) -> None:
        super().__init__(values, labels, class_names, fingerprint, is_mirrored)
        self.vae_fingerprint = vae_fingerprint


def read_latents(path: Path) -> LatentImages:
    """The labelled latents of a safetensors file.

    The file has `latents` [N, C, H, W] of a floating type and `labels` Int64 [N], and in its metadata `class_names`, a
    JSON list; without it, the names are the numbers.

    Raises:
        FileError: no such file, or one that holds something else.
        CorruptFileError: a damaged file.
    """
    header = read_header(path)
    metadata = header.pop("__metadata__", {})
    shapes = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()}
    dtype, shape = shapes.get("latents", ("", []))
    if dtype not in ("F16", "BF16", "F32", "F64") or len(shape) != 4 or shapes.get("labels") != ("I64", shape[:1]):
        raise FileError(f"{path} does not hold latents [N, C, H, W] with Int64 labels [N]; give a file that does")
    tensors = load_file(path)
    labels = tensors["labels"]
    names = _class_names(path, metadata.get("class_names"), int(labels.max()) + 1 if len(labels) else 0)
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= len(names):
        raise FileError(f"{path} has {len(labels)} labels, not all of them from 0 to {len(names) - 1}; write it again")
    made_from = metadata.get("images") or fingerprint([names], tensors.items())
    is_mirrored = metadata.get("mirrored") == "true"
    return LatentImages(tensors["latents"], labels, names, made_from, is_mirrored, metadata.get("vae", ""))


def require_decodable(latents: LatentImages, path: Path, vae: ImageVae) -> None:
    """Return if the VAE is the one that made the latents, as far as the file tells.

    Raises:
        CheckpointError: it is another one.
    """
    channels = latents.shape[0]
    if channels != vae.channels:
        raise CheckpointError(
            f"{path} holds latents of {channels} channels, and the VAE in {vae.root} has {vae.channels}; give vae_root"
        )
    if latents.vae_fingerprint and latents.vae_fingerprint != vae.fingerprint:
        raise CheckpointError(f"{path} was made by another VAE than the one in {vae.root}; give vae_root")


def _write(images: Images, vae: ImageVae, path: Path) -> None:
    require_writable(path)
    tensors = {"latents": vae.encode(images), "labels": images.labels.contiguous()}
    metadata = {
        "class_names": json.dumps(images.class_names),
        "images": images.fingerprint,
        "vae": vae.fingerprint,
        "mirrored": "true" if images.is_mirrored else "false",
    }
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata)


def _class_names(path: Path, text: str | None, num_classes: int) -> tuple[str, ...]:
    if text is None:
        return tuple(str(number) for number in range(num_classes))
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise FileError(f"the class_names in the metadata of {path} are no JSON list of texts; write it again")
    return tuple(names)


def _num_at_once(num_pixels: int) -> int:
    return min(IMAGES_AT_ONCE, max(1, PIXELS_AT_ONCE // num_pixels))
