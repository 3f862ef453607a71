"""Clips of shards as pictures: decoded where the VAE that made them is at hand, as false colours where it is not."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.images import bytes_from_pixels
from latentloom.wan.checkpoint_fingerprints import fingerprint_vae
from latentloom.wan.shipped import micro_wan_weights

_LATENT_RANGE = 2.0  # normalised latents are shown from -2 to 2


class ClipPictures:
    """Pictures of some clips.

    Args:
        index: the shards.
        rows: the clips, by their number there.
        frames: which of them are keyframes.
        vae_root: checkpoint of the VAE; None is MicroWan.
        device: where the VAE computes.

    Attributes:
        is_decoded: False where only false colours can be shown.
        missing: what could not be had, and why.
    """

    def __init__(
        self,
        index: ShardIndex,
        rows: Int64[Tensor, "N"],
        frames: Sequence[int],
        vae_root: Path | None,
        device: torch.device,
    ) -> None:
        self.index, self.rows, self.frames, self.device = index, rows, list(frames), device
        self.vae_root = vae_root or micro_wan_weights()
        problem = self._why_not_decoded()
        self.missing = [] if problem is None else [problem]
        self.is_decoded = problem is None

    def keyframes(self, chosen: Int64[Tensor, "M"]) -> UInt8[Tensor, "M K H W 3"]:
        """The keyframes of clips, by their place in `rows`."""
        values = self.index.load(self.rows[chosen])
        if not self.is_decoded:
            return self._false_colours(values[:, :, self.frames])
        manifest = self.index.manifest
        if manifest is not None and manifest.frames == "clip":
            decoded = self._decode(values)
            step = (decoded.shape[1] - 1) // max(values.shape[2] - 1, 1)  # video frames per latent frame
            return decoded[:, [frame * step for frame in self.frames]]
        return self._decode(values[:, :, self.frames])

    def clips(self, chosen: Int64[Tensor, "M"]) -> UInt8[Tensor, "M K H W 3"]:
        """All frames of clips, by their place in `rows`."""
        return self._decode(self.index.load(self.rows[chosen]))

    def _why_not_decoded(self) -> str | None:
        manifest = self.index.manifest
        if manifest is None:
            return "The shards do not say what their numbers are: clips are shown as false colours, not decoded."
        if manifest.space == "pixel":
            return None
        own = fingerprint_vae(self.vae_root)
        if manifest.vae != own:
            return (
                f"The latents are of the VAE {manifest.vae or '(not stated)'}, and {self.vae_root.name} holds {own}: "
                "clips are shown as false colours; give --ckpt-root the checkpoint that made them."
            )
        return None

    def _decode(self, values: Float[Tensor, "B C T H W"]) -> UInt8[Tensor, "B F rows columns 3"]:
        from latentloom.drifting.clips.pixels import ClipSpace  # diffusers takes seconds to import

        manifest = self.index.manifest
        assert manifest is not None
        space = ClipSpace(manifest.space, manifest.frames, self.vae_root, self.device, manifest.vae)
        return space.to_frames(values.to(self.device))

    @staticmethod
    def _false_colours(values: Float[Tensor, "B C T H W"]) -> UInt8[Tensor, "B T H W 3"]:
        """The first three channels as red, green and blue."""
        colours = values[:, :3] if values.shape[1] >= 3 else values[:, :1].expand(-1, 3, -1, -1, -1)
        return bytes_from_pixels(colours / _LATENT_RANGE).permute(0, 2, 3, 4, 1)
