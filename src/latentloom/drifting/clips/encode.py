"""Clips of pixels into shards: encoded by a VAE or kept as they are, their prompts beside them."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.drifting.images import bytes_from_pixels
from latentloom.drifting.latent_data import ImageVae
from latentloom.errors import ConfigError, FileError
from latentloom.wan.text_encoder import WanTextEncoder
from latentloom.wan.vae import encode_video

PIXELS_AT_ONCE = 2**20  # that the VAE computes together
CLIPS_AT_ONCE = 64
TEXTS_KEPT = 4096  # prompts whose encoding is kept for the next clip with the same one


@dataclass(frozen=True, eq=False)
class SourceClip:
    """A clip before it is encoded.

    Attributes:
        key: its name.
        pixels: RGB from -1 to 1.
        prompt: its caption; empty without one.
        part: "train" or "held_out".
    """

    key: str
    pixels: Float[Tensor, "3 T H W"]
    prompt: str
    part: str = "train"


class ClipEncoder:
    """Brings clips of pixels into the space that they are stored in.

    Args:
        space: "latent", or "pixel" to keep them as they are.
        frames: latents: "each" encodes every frame as an image, "clip" compresses them in time.
        root: checkpoint of the VAE; None is MicroWan.
        device: where the VAE computes.

    Raises:
        CheckpointError: there is no VAE.
    """

    def __init__(
        self,
        space: Literal["latent", "pixel"],
        frames: Literal["each", "clip"],
        root: Path | None,
        device: torch.device,
    ) -> None:
        self.space: Literal["latent", "pixel"] = space
        self.frames: Literal["each", "clip"] | None = frames if space == "latent" else None
        self.device = device
        self._vae = ImageVae(root, device) if space == "latent" else None

    @property
    def fingerprint(self) -> str | None:
        """Of the VAE; None without one."""
        return None if self._vae is None else self._vae.fingerprint

    @property
    def multiple(self) -> int:
        """What the sides of a frame must be multiples of."""
        return 1 if self._vae is None else self._vae.stride

    @property
    def temporal_stride(self) -> int:
        """Video frames in a latent frame, where the VAE compresses time; 1 without one."""
        return 1 if self._vae is None else self._vae.temporal_stride

    def require_size(self, num_frames: int, height: int, width: int) -> None:
        """Return if clips of this size can be encoded.

        Raises:
            ConfigError: the number of frames or a side does not fit the VAE.
        """
        if self._vae is None:
            return
        for side in (height, width):
            if side % self.multiple:
                raise ConfigError(f"frames of {width}x{height} pixels; the VAE needs multiples of {self.multiple}")
        stride = self._vae.temporal_stride
        if self.frames == "clip" and num_frames % stride != 1:
            below = max(1, (num_frames - 1) // stride * stride + 1)
            raise ConfigError(
                f"num_frames = {num_frames} is not {stride}k+1, as --frames clip needs; use {below} or {below + stride}"
            )

    def encode(self, pixels: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """Clips in float32 on the CPU: normalised latents, or the pixels themselves."""
        if self._vae is None:
            return pixels.float().cpu()
        num_clips, _, num_frames, height, width = pixels.shape
        self.require_size(num_frames, height, width)
        videos = bytes_from_pixels(pixels).permute(0, 2, 3, 4, 1)
        if self.frames == "each":
            videos = videos.flatten(0, 1).unsqueeze(1)
        at_once = max(1, PIXELS_AT_ONCE // (videos.shape[1] * height * width))
        parts = [
            encode_video(self._vae.model, part, self.device).values.float().cpu() for part in videos.split(at_once)
        ]
        latents = torch.cat(parts)
        if self.frames == "each":
            latents = latents.squeeze(2).unflatten(0, (num_clips, num_frames)).transpose(1, 2)
        return latents.contiguous()


class PromptTexts:
    """What the text encoder says about prompts; the latest are kept, so that a repeated one is encoded once.

    Args:
        encoder: with its tokenizer.
    """

    def __init__(self, encoder: WanTextEncoder) -> None:
        self.encoder = encoder
        self.fingerprint = encoder.fingerprint()
        self.num_encoded = 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, prompts: Sequence[str]) -> list[Float[Tensor, "L D"]]:
        """The text of each prompt on the CPU, in float32, at its true length."""
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
        if new:
            encoded = self.encoder.encode(new).to("cpu", torch.float32).to_list()
            found |= {prompt: text.clone() for prompt, text in zip(new, encoded, strict=True)}  # not a view of all
            self.num_encoded += len(new)
        for prompt in dict.fromkeys(prompts):
            self._kept[prompt] = found[prompt]
            self._kept.move_to_end(prompt)
        while len(self._kept) > TEXTS_KEPT:
            self._kept.popitem(last=False)
        return [found[prompt] for prompt in prompts]


@dataclass(frozen=True)
class ShardFacts:
    """What a writer is told about the clips.

    Attributes:
        fps: video frames per second.
        clips_per_shard: how many a tar gets.
        source: where the clips come from, in words.
    """

    fps: float
    clips_per_shard: int
    source: str


def write_clips(
    clips: Iterable[SourceClip],
    encoder: ClipEncoder,
    texts: PromptTexts | None,
    folders: Mapping[str, Path],
    facts: ShardFacts,
) -> Counter[str]:
    """Encode clips and write them into shards as they come; returns the number of clips of each part.

    Args:
        clips: of one size.
        encoder: for their frames.
        texts: for their prompts; None stores the prompts without.
        folders: new or empty ones, by part.
        facts: for the manifest.

    Raises:
        FileError: a folder holds something, or one of the parts got no clip.
        ConfigError: clips that the VAE cannot encode.
    """
    written: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {
            part: stack.enter_context(_writer(folder, encoder, texts, facts)) for part, folder in folders.items()
        }
        for batch in _batches(clips):
            values = encoder.encode(torch.stack([clip.pixels for clip in batch]))
            encoded = texts.of([clip.prompt for clip in batch]) if texts else [None] * len(batch)
            for clip, latents, text in zip(batch, values, encoded, strict=True):
                writers[clip.part].write(clip.key, latents, text, clip.prompt)
                written[clip.part] += 1
        empty = [part for part in folders if not written[part]]
        if empty:
            raise FileError(
                f"there is no clip for {empty[0]}: the videos are too short; give fewer frames or another share"
            )
    return written


def _writer(folder: Path, encoder: ClipEncoder, texts: PromptTexts | None, facts: ShardFacts) -> ShardWriter:
    return ShardWriter(
        folder,
        space=encoder.space,
        frames=encoder.frames,
        fps=facts.fps,
        clips_per_shard=facts.clips_per_shard,
        vae=encoder.fingerprint,
        text_encoder=None if texts is None else texts.fingerprint,
        source=facts.source,
    )


def _batches(clips: Iterable[SourceClip]) -> Iterator[list[SourceClip]]:
    remaining = iter(clips)
    first = next(remaining, None)
    if first is None:
        return
    at_once = min(CLIPS_AT_ONCE, max(1, PIXELS_AT_ONCE // (first.pixels.numel() // 3)))
    batch = [first, *islice(remaining, at_once - 1)]
    while batch:
        yield batch
        batch = list(islice(remaining, at_once))
