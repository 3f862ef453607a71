"""A storyboard completed to a clip: keyframes at their times, and a prompt for a refiner that knows prompts."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from latentloom.drifting.clips.config import ClipConfig
from latentloom.drifting.clips.corruption import FilledClips
from latentloom.drifting.clips.data import space_of_channels
from latentloom.drifting.clips.pixels import ClipSpace
from latentloom.drifting.clips.refiner_files import ClipRefiner
from latentloom.drifting.clips.storyboard import Storyboard
from latentloom.errors import ConfigError
from latentloom.keyframes import frame_confidence
from latentloom.keyframes.frame_schedule import frame_levels
from latentloom.tensors import TextEmbeddings
from latentloom.wan.checkpoint_fingerprints import fingerprint_text_encoder


@dataclass(frozen=True, eq=False)
class Completion:
    """A completed storyboard.

    Attributes:
        clip: as the refiner gives it.
        interpolated: what the refiner was given.
        level: of corruption that it was taken for.
    """

    clip: Float[Tensor, "1 C T H W"]
    interpolated: Float[Tensor, "1 C T H W"]
    level: int


@torch.no_grad()
def complete_storyboard(
    refiner: ClipRefiner,
    config: ClipConfig,
    storyboard: Storyboard,
    text: TextEmbeddings | None = None,
    alpha: float = 1.0,
) -> Completion:
    """The clip that a refiner makes of a storyboard.

    It is taken for the level whose number of keyframes is nearest to the storyboard's; its class is that of its prompt
    and keyframes.

    Args:
        refiner: with its own interpolation and classes.
        config: of its training.
        storyboard: keyframes.
        text: of the prompt; none where it was trained without.
        alpha: guidance strength, 1 or more.

    Raises:
        ConfigError: a prompt for a refiner that was trained without, or none for one that was trained with.
    """
    needs_text = refiner.classes.encoder.text_width is not None
    if needs_text != (text is not None):
        kind = "with prompts; give one" if needs_text else "without prompts; leave it out"
        raise ConfigError(f"the refiner was trained {kind}")
    device = next(refiner.network.parameters()).device
    values, given = storyboard.values.to(device), storyboard.given.to(device)
    masks = _masks(given, config)
    level = _level(given, config)
    interpolated = refiner.keyframes.interpolate(values, given)
    masks[level:] = given
    filled = FilledClips(interpolated, given, frame_confidence(given), torch.tensor([level], device=device), given)
    classes = refiner.classes.assign(refiner.classes.encoder.embed_clips(interpolated, text)).to(device)
    padded = (None, None)
    if text is not None:
        length = max(int(text.lengths.max()), 1)
        padded = (text.padded(length).to(device), text.mask(length).to(device))
    clip = refiner.complete(filled, masks, classes, torch.tensor([alpha], device=device), *padded)
    return Completion(clip, interpolated, level)


def decode_completion(
    completion: Completion, refiner: ClipRefiner, vae_root: Path | None, device: torch.device
) -> UInt8[Tensor, "F rows columns 3"]:
    """The frames of a completed clip.

    Raises:
        ConfigError: the VAE at `vae_root` is not that of the refiner's clips.
    """
    return clip_space(refiner, vae_root, device).to_frames(completion.clip)[0]


def require_text_encoder(refiner: ClipRefiner, root: Path) -> None:
    """Return if a checkpoint's text encoder made the texts that a refiner was trained with, or nothing tells which did.

    Raises:
        ConfigError: another one did.
        CheckpointError: there is no text encoder.
    """
    stated = refiner.manifest.text_encoder if refiner.manifest is not None else None
    if stated is not None and fingerprint_text_encoder(root) != stated:
        raise ConfigError(
            f"the refiner was not trained with the text encoder in {root}; give the checkpoint that has it to "
            "--ckpt-root"
        )


def clip_space(refiner: ClipRefiner, vae_root: Path | None, device: torch.device) -> ClipSpace:
    """What the numbers of a refiner's clips mean; without a manifest, pixels or latents of whole clips."""
    manifest = refiner.manifest
    if manifest is None:
        return ClipSpace(space_of_channels(refiner.classes.encoder.clip_shape[0]), "clip", vae_root, device)
    return ClipSpace(manifest.space, manifest.frames, vae_root, device, manifest.vae)


def _level(given: Bool[Tensor, "1 T"], config: ClipConfig) -> int:
    counts = [len(frames) for frames in frame_levels(given.shape[1], config.num_levels, config.min_keyframes)]
    num_given = int(given.sum())
    return min(range(len(counts)), key=lambda level: (abs(counts[level] - num_given), level))


def _masks(given: Bool[Tensor, "1 T"], config: ClipConfig) -> Bool[Tensor, "L 1 T"]:
    """The storyboard's frames, and at denser levels those of the schedule beside them."""
    masks = given.repeat(config.num_levels, 1, 1)
    for level, frames in enumerate(frame_levels(given.shape[1], config.num_levels, config.min_keyframes)):
        masks[level, :, list(frames)] = True
    return masks
