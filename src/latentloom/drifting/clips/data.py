"""The clips of a training and those held out from it, out of shards."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.clips.config import ClipDataConfig
from latentloom.drifting.clips.corruption import StudentFrames
from latentloom.drifting.clips.manifest import ShardManifest
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.data import ImageData
from latentloom.drifting.images import Images, pixels_from_bytes
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs.randomness import step_generator


@dataclass(frozen=True, eq=False)
class Clips:
    """Some clips of a set of shards, loaded to a device when they are asked for.

    Attributes:
        index: the shards.
        rows: the clips' numbers there.
        labels: pseudo-class of each clip.
        device: where loaded clips go.
    """

    index: ShardIndex
    rows: Int64[Tensor, "N"]
    labels: Int64[Tensor, "N"]
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Channels, frames, rows and columns of a clip."""
        return self.index.shape

    @property
    def fingerprint(self) -> str:
        """Tells the shards from all others."""
        return self.index.fingerprint

    def load(self, numbers: Int64[Tensor, "B"]) -> Float[Tensor, "B C T H W"]:
        """Clips in float32."""
        return self.index.load(self.rows[numbers.cpu()]).to(self.device)

    def load_text(self, numbers: Int64[Tensor, "B"]) -> tuple[Float[Tensor, "B L E"], Bool[Tensor, "B L"]]:
        """The prompts' tokens, zero-padded to the longest, and true where there is one."""
        text = self.index.load_text(self.rows[numbers.cpu()])
        length = max(int(text.lengths.max()), 1) if len(text) else 1
        return text.padded(length).to(self.device), text.mask(length).to(self.device)

    def load_student(self, numbers: Int64[Tensor, "B"]) -> StudentFrames:
        """The keyframes that another model made for the clips."""
        values, has_frame = self.index.load_anchors(self.rows[numbers.cpu()])
        return StudentFrames(values.to(self.device), has_frame.to(self.device))

    def prompts(self, numbers: Int64[Tensor, "B"]) -> list[str]:
        """The clips' prompts."""
        return self.index.prompts(self.rows[numbers.cpu()])

    def labelled(self, labels: Int64[Tensor, "N"]) -> "Clips":
        """The same clips with other labels."""
        return replace(self, labels=labels)


@dataclass(frozen=True, eq=False)
class ClipData:
    """What a refiner of clips is trained and evaluated on.

    Attributes:
        train: clips to train on.
        held_out: clips that training never sees.
        manifest: what the shards say they hold; None for shards of other programs.
        text_width: channels of a text token; None where there are no texts, or they are not used.
        description: what it is, in a line.
    """

    train: Clips
    held_out: Clips
    manifest: ShardManifest | None
    text_width: int | None
    description: str

    @property
    def space(self) -> Literal["latent", "pixel"]:
        """What the numbers are; without a manifest, three channels are pixels."""
        if self.manifest is not None:
            return self.manifest.space
        return space_of_channels(self.train.shape[0])

    def labelled(self, train: Clips, held_out: Clips) -> "ClipData":
        """The same data with clips that have labels."""
        return replace(self, train=train, held_out=held_out)


def space_of_channels(num_channels: int) -> Literal["latent", "pixel"]:
    """What clips of so many channels are taken for where no manifest says it: three are pixels."""
    return "pixel" if num_channels == 3 else "latent"


def load_clips(config: ClipDataConfig, device: torch.device) -> ClipData:
    """Open the shards of the settings and split them; every clip has the label 0 so far.

    Raises:
        FileError: there are no shards.
        ShapeError: held-out clips of another shape.
        ConfigError: too few clips for two parts, or shards of another VAE or text encoder.
    """
    index = ShardIndex.open(config.data_root)
    if config.held_out_root is not None:
        held_index = ShardIndex.open(config.held_out_root)
        _refuse_other_kind(index, held_index, config)
        train_rows, held_rows = torch.arange(len(index)), torch.arange(len(held_index))
    else:
        held_index = index
        train_rows, held_rows = _split(len(index), config)
    train, held_out = (
        Clips(of, rows, torch.zeros(len(rows), dtype=torch.int64), device)
        for of, rows in ((index, train_rows), (held_index, held_rows))
    )
    text_width = index.text_width if config.use_text else None
    channels, num_frames, rows, columns = index.shape
    description = (
        f"shards {config.data_root}: clips of {num_frames} frames as {channels}x{rows}x{columns} "
        f"{index.manifest.space if index.manifest else 'value'}s; {len(train)} to train on, {len(held_out)} held out"
    )
    return ClipData(train, held_out, index.manifest, text_width, description)


def frame_data(data: ClipData, vae_root: Path | None = None) -> ImageData:
    """The frames of the clips as images, for an autoencoder.

    Args:
        data: the clips.
        vae_root: checkpoint of the VAE that made the latents; without it, and where that is not MicroWan's, the frames
            cannot be shown.

    Raises:
        ConfigError: the VAE in `vae_root` is another one.
        FileError, CheckpointError: there is no such checkpoint, or no VAE in it.
    """
    from latentloom.drifting.clips.pixels import known_space  # the VAE's library takes seconds to import

    space = known_space(data, vae_root, data.train.device, single_frames=True)

    def to_pixels(frames: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 rows columns"]:
        if space is None:
            raise ConfigError("the VAE of these latents is not known; give the checkpoint that made them as vae_root")
        return pixels_from_bytes(space.to_frames(frames.unsqueeze(2))).squeeze(1).permute(0, 3, 1, 2)

    train, held_out = FrameImages(data.train), FrameImages(data.held_out)
    return ImageData(train, held_out, to_pixels, f"frames of {data.description}", has_pixels=space is not None)


class FrameImages(Images):
    """Every frame of some clips as an image of one class: what an autoencoder of frames is trained on."""

    def __init__(self, clips: Clips) -> None:
        channels, num_frames, rows, columns = clips.shape
        labels = torch.zeros(len(clips) * num_frames, dtype=torch.int64)
        super().__init__(labels, ("frame",), (channels, rows, columns), f"frames of {clips.fingerprint}")
        self.clips = clips
        self.num_frames = num_frames

    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Images."""
        indices = indices.cpu()
        rows = self.clips.rows[indices // self.num_frames]
        return self.clips.index.load_frames(rows, indices % self.num_frames).to(self.clips.device)


def _split(num_clips: int, config: ClipDataConfig) -> tuple[Int64[Tensor, "T"], Int64[Tensor, "H"]]:
    order = torch.randperm(num_clips, generator=step_generator(config.split_seed, 0, "held-out clips"))
    num_held = max(round(num_clips * config.held_out_share), 1)
    if num_held >= num_clips:
        raise ConfigError(
            f"{config.data_root} holds {num_clips} clips, too few to train on some and hold others out; give more"
        )
    return order[num_held:].sort().values, order[:num_held].sort().values


def _refuse_other_kind(index: ShardIndex, held_out: ShardIndex, config: ClipDataConfig) -> None:
    if index.shape != held_out.shape:
        raise ShapeError(
            f"{config.held_out_root} holds clips of {held_out.shape}, and {config.data_root} of {index.shape}; "
            "give shards of one shape"
        )
    one, other = index.manifest, held_out.manifest
    for name in ("space", "frames", "vae", "text_encoder"):
        if one is not None and other is not None and getattr(one, name) != getattr(other, name):
            raise ConfigError(
                f"{config.held_out_root} has {name} = {getattr(other, name)}, and {config.data_root} "
                f"{getattr(one, name)}; make both in the same way"
            )
