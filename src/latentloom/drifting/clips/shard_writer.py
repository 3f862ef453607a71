"""Writes clips into shards: tars of a few hundred clips each, every one of them whole or not there."""

import io
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from webdataset.writer import TarWriter

from latentloom.drifting.clips.clip_sample import ANCHORS, LATENT, PROMPT, TEXT, Anchors
from latentloom.drifting.clips.manifest import MANIFEST_NAME, ShardManifest, write_manifest
from latentloom.errors import ConfigError, FileError, ShapeError
from latentloom.storage.atomic import atomic_write, disk_failures_said
from latentloom.tensors.text_embeddings import PADDED_LENGTH

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


class ShardWriter:
    """Appends clips to the shards of a new folder; use it in a `with` statement, whose end finishes the manifest.

    A shard appears under its name when it is whole. After an error the shards that are whole stay, with a manifest that
    says they are unfinished, so that nobody takes them for all there are.

    Args:
        folder: new or empty; made if missing.
        space: "latent" or "pixel".
        frames: of latents: "each" or "clip", see ShardManifest.
        fps: video frames per second.
        clips_per_shard: how many clips a tar gets.
        dtype: that values and texts are kept in: float16, bfloat16 or float32.
        vae, text_encoder: fingerprints; None where there is none.
        source: where the clips come from, in words.

    Raises:
        FileError: the folder holds something.
        ConfigError: a dtype or number that is not allowed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        space: Literal["latent", "pixel"],
        frames: Literal["each", "clip"] | None = None,
        fps: float = 8.0,
        clips_per_shard: int = 256,
        dtype: Literal["float16", "bfloat16", "float32"] = "float16",
        vae: str | None = None,
        text_encoder: str | None = None,
        source: str = "",
    ) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileError(f"{folder} is not empty; give a new folder")
        if clips_per_shard < 1:
            raise ConfigError(f"clips_per_shard = {clips_per_shard}; give 1 or more")
        self.folder = folder
        self.num_clips = 0
        self._clips_per_shard = clips_per_shard
        self._dtype = DTYPES[dtype]
        self._facts = {"space": space, "frames": frames, "fps": fps, "clips_per_shard": clips_per_shard, "dtype": dtype}
        self._facts |= {"vae": vae, "text_encoder": text_encoder, "source": source}
        self._shape: tuple[int, ...] | None = None
        self._text_width: int | None = None
        self._keys: set[str] = set()
        self._shard: _OpenShard | None = None

    def write(
        self,
        key: str,
        values: Float[Tensor, "C T H W"],
        text: Float[Tensor, "L D"] | None = None,
        prompt: str = "",
        anchors: Anchors | None = None,
    ) -> None:
        """Add a clip.

        Args:
            key: its name, without dots and slashes; no two clips have the same.
            values: as all others in shape; infinite ones are refused, also where only the stored type makes them so.
            text: what the encoder says about the prompt, at its true length of at most 512 tokens.
            prompt: the text itself.
            anchors: another model's keyframes of the clip.

        Raises:
            ShapeError: another shape or text width than the first clip, or values that cannot be stored.
            ConfigError: a key that is taken or has a dot or slash.
            FileError: the disk is full.
        """
        self._check(key, values, text)
        members = {LATENT: _as_bytes(self._stored(key, values)), PROMPT: prompt.encode()}
        if text is not None:
            padded = torch.zeros(PADDED_LENGTH, text.shape[1], dtype=self._dtype)
            padded[: len(text)] = self._stored(key, text)
            members[TEXT] = _as_bytes(padded)
        if anchors is not None:
            kept = {"anchor_idx": anchors.index.cpu(), "anchor_values": self._stored(key, anchors.values)}
            members[ANCHORS] = _as_bytes(kept)
        if not self.num_clips:
            self._write_manifest()  # unfinished so far
        if self._shard is None:
            number = self.num_clips // self._clips_per_shard
            self._shard = _OpenShard(self.folder / f"shard-{number:05d}.tar")
        with disk_failures_said(self.folder):
            self._shard.tar.write({"__key__": key, **members})
        self._keys.add(key)
        self.num_clips += 1
        if self.num_clips % self._clips_per_shard == 0:
            self._finish_shard()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            shard, self._shard = self._shard, None
            if shard is not None:
                shard.abandon(kind, error, traceback)
            if self.num_clips < self._clips_per_shard:  # no shard is whole
                (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
            return
        self._finish_shard()
        if self.num_clips:
            self._write_manifest()

    def _write_manifest(self) -> None:
        about = {**self._facts, "shape": self._shape, "text_width": self._text_width, "num_clips": self.num_clips}
        write_manifest(self.folder, ShardManifest.model_validate(about))

    def _finish_shard(self) -> None:
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.finish()

    def _check(self, key: str, values: Tensor, text: Tensor | None) -> None:
        if not key or "." in key or "/" in key or key.startswith("__"):
            raise ConfigError(f"{key!r} is no key of a clip; give one without dots and slashes")
        if key in self._keys:
            raise ConfigError(f"two clips have the key {key!r}; give each its own")
        width = None if text is None else text.shape[1]
        if self._shape is None:
            self._shape, self._text_width = tuple(values.shape), width
        if tuple(values.shape) != self._shape or width != self._text_width:
            raise ShapeError(
                f"clip {key} has shape {tuple(values.shape)} and text width {width}, those before it "
                f"{self._shape} and {self._text_width}; all clips of a folder are alike"
            )
        if text is not None and len(text) > PADDED_LENGTH:
            raise ShapeError(f"the text of clip {key} has {len(text)} tokens; at most {PADDED_LENGTH} are stored")

    def _stored(self, key: str, values: Tensor) -> Tensor:
        stored = values.detach().to("cpu", self._dtype).contiguous()
        if not bool(stored.isfinite().all()):
            raise ShapeError(f"clip {key} has values that {self._dtype} cannot hold; clip them, or store float32")
        return stored


class _OpenShard:
    """A tar that is being written under a temporary name."""

    def __init__(self, path: Path) -> None:
        self._stack = ExitStack()
        temporary = self._stack.enter_context(atomic_write(path))
        self._stack.enter_context(disk_failures_said(path))
        file = self._stack.enter_context(temporary.open("wb"))
        self.tar = self._stack.enter_context(TarWriter(file, encoder=False, mtime=0))

    def finish(self) -> None:
        self._stack.close()

    def abandon(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


def _as_bytes(content: Shaped[Tensor, "..."] | dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(content.clone() if isinstance(content, Tensor) else content, buffer)  # a view would keep what it is of
    return buffer.getvalue()
