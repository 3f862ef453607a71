"""The cache of one folder of media: what is wanted of it, what is there, and what must be computed."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from latentloom.errors import ConfigError
from latentloom.finetune.cache.dataset import Entry
from latentloom.finetune.cache.encode import LatentJob, encode_latents, encode_texts
from latentloom.finetune.cache.entries import EntrySet
from latentloom.finetune.cache.items import Item, read_items, scan_folder, write_items
from latentloom.finetune.cache.ranks import Ranks
from latentloom.finetune.cache.shards import ShardWriter
from latentloom.finetune.dataset_config import MediaFolder
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.text_encoder import WanTextEncoder

logger = logging.getLogger(__name__)

FOLDER = "cache"
PREPARATION = "1"
"""Part of every key of latents; to be raised when files are brought to frames in another way."""


class CacheRoot:
    """One folder of media with its sub-folder `cache`.

    Args:
        media: the folder.
        latents: name of the set of latents in the cache: the VAE and the dtype.
        text: the same for the captions; None if they are not cached.
        fps: the model's frames per second.
        ranks: who shares the work.
    """

    def __init__(self, media: Path, latents: str, text: str | None, fps: float, ranks: Ranks) -> None:
        self.media = media
        self.folder = media / FOLDER
        self.items: list[Item] = []
        self.entries: list[tuple[MediaFolder, Entry]] = []
        self.skipped: dict[str, str] = {}
        self.latents = EntrySet(self.folder / "latents" / latents, ranks)
        self.text = None if text is None else EntrySet(self.folder / "text" / text, ranks)
        self._fps = fps
        self._ranks = ranks
        self._jobs: dict[str, LatentJob] = {}
        self._captions: dict[str, str] = {}
        self._stored_items: list[Item] | None = None

    def find(self, trust: bool) -> None:
        """Learn what the folder and its cache hold; if trusted and there, from the index alone."""
        self._stored_items = self._ranks.first(lambda: read_items(self._index))
        known = self._stored_items or []
        if trust and self._stored_items is not None and all(item.fps == self._fps for item in known):
            self.items = known
        else:
            self.items = scan_folder(self.media, self._fps, known, self._ranks)
        if not self.items:
            logger.warning("%s holds no images or videos (sub-folders are not searched)", self.media)
        self.skipped = {str(self.media / item.file): item.problem for item in self.items if item.problem}
        self.find_stored(trust)

    def find_stored(self, trust: bool) -> None:
        """Learn anew what is stored; another run may have added to it."""
        for entries in self._sets():
            entries.find(trust)

    def want(self, folder: MediaFolder) -> None:
        """Note what training on this folder with these settings takes."""
        for item in self.items:
            if item.problem:
                continue
            path = self.media / item.file
            try:
                sizes = folder.buckets.assign(item.width, item.height, item.num_frames)
            except ConfigError as error:
                self.skipped[str(path)] = f"{path}: {error}"
                logger.warning("skipped: %s: %s", path, error)
                continue
            text = _text_key(item.caption)
            self._captions[text] = item.caption
            for size in sizes:
                key = _latents_key(item.digest, size, self._fps)
                self._jobs.setdefault(key, LatentJob(key, path, size))
                entry = Entry(f"{folder.name}/{item.file}", self.media, item.file, size, item.caption, key, text)
                self.entries.append((folder, entry))

    @property
    def is_complete(self) -> bool:
        """Whether nothing that is wanted must be computed."""
        has_text = self.text is None or not self.text.missing(self._captions)
        return has_text and not self.latents.missing(self._jobs)

    def encode_latents(
        self, get_vae: Callable[[], AutoencoderKLWan], batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Compute the latents that are missing; items whose files cannot be decoded are dropped.

        Raises:
            FileError: the cache cannot be written to; what was finished is kept.
        """
        jobs = [self._jobs[key] for key in self.latents.missing(self._jobs)]
        if not jobs:
            return
        mine = self._ranks.share(sorted(jobs, key=_largest_first))
        mine_failed: dict[str, str] = {}

        def fill(writer: ShardWriter) -> None:
            mine_failed.update(
                encode_latents(mine, get_vae, writer, fps=self._fps, batch_size=batch_size, device=device, dtype=dtype)
            )

        self.latents.add(fill)
        failed: dict[str, str] = {}
        for share in self._ranks.all(lambda: mine_failed):
            failed |= share
        self._drop(failed)

    def encode_texts(self, get_encoder: Callable[[], WanTextEncoder], dtype: torch.dtype) -> None:
        """Compute the embeddings of the captions that are missing.

        Raises:
            FileError: the cache cannot be written to; what was finished is kept.
        """
        missing = [] if self.text is None else self.text.missing(self._captions)
        if self.text is None or not missing:
            return
        mine = [(key, self._captions[key]) for key in self._ranks.share(sorted(missing))]

        def fill(writer: ShardWriter) -> None:
            if mine:
                encode_texts(mine, get_encoder(), writer, dtype)

        self.text.add(fill)

    def write_indexes(self) -> None:
        """Keep what was found, where that has changed; only one process may call this.

        Raises:
            FileError: the cache cannot be written to.
        """
        if self.items != self._stored_items:
            write_items(self._index, self.items)
        for entries in self._sets():
            entries.write_index()

    def clear(self) -> None:
        """Remove what was computed with these models; only one process may call this."""
        self._index.unlink(missing_ok=True)
        for entries in self._sets():
            entries.clear()

    @property
    def num_clips(self) -> int:
        return len(self._jobs)

    @property
    def num_captions(self) -> int:
        return len(self._captions)

    @property
    def _index(self) -> Path:
        return self.folder / "items.arrow"

    def _sets(self) -> list[EntrySet]:
        return [self.latents] if self.text is None else [self.latents, self.text]

    def _drop(self, problems: dict[str, str]) -> None:
        """Take out every item with one of these latents, in all its sizes."""
        reasons = {entry.file: problems[entry.latents] for _, entry in self.entries if entry.latents in problems}
        self.items = [replace(item, problem=reasons.get(item.file, item.problem)) for item in self.items]
        self.skipped |= {str(self.media / file): reason for file, reason in reasons.items()}
        self.entries = [(folder, entry) for folder, entry in self.entries if entry.file not in reasons]
        self._jobs = {entry.latents: self._jobs[entry.latents] for _, entry in self.entries}
        self._captions = {entry.text: entry.caption for _, entry in self.entries}


def _latents_key(digest: str, size: ClipSize, fps: float) -> str:
    rate = f" at {fps:g} fps" if size.num_frames > 1 else ""
    text = f"{PREPARATION} {digest} {size.num_frames}x{size.height}x{size.width}{rate}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _text_key(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]


def _largest_first(job: LatentJob) -> tuple[int, int, int, str]:
    """Items of one size together, and the size that takes most memory at once."""
    size = job.size
    return -size.num_frames * size.height * size.width, size.num_frames, size.height, job.path.name
