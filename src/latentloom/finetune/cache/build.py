"""Building a cache: look at the media, compute what is missing, keep an index."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import torch

from latentloom.errors import ConfigError, FileError
from latentloom.finetune.cache.dataset import CachedDataset, Entry
from latentloom.finetune.cache.models import CacheModels
from latentloom.finetune.cache.ranks import Ranks
from latentloom.finetune.cache.report import CacheReport
from latentloom.finetune.cache.root import CacheRoot
from latentloom.finetune.dataset_config import MediaFolder, load_folders
from latentloom.finetune.media import is_video
from latentloom.storage import require_writable
from latentloom.storage.store_lock import StoreLock
from latentloom.wan.facts import ModelFacts

LOCK_SECONDS = 10.0


def cache_dataset(
    dataset: Path,
    models: CacheModels,
    *,
    facts: ModelFacts,
    cache_text: bool,
    trust: bool = False,
    regenerate: bool = False,
    batch_size: int = 1,
) -> CachedDataset:
    """Everything that training reads of a data set, computed where it is not there yet.

    In a process group every process calls this; each computes its share, on a file system that all of them see, and
    all get the same data set. Each folder's cache is its sub-folder `cache`.

    Args:
        dataset: the data set's TOML file, or a folder of media.
        models: what computes latents and embeddings.
        facts: of the model that is trained.
        cache_text: also encode the captions.
        trust: take the index as it is: media are not read, shards not checked, new files not noticed.
        regenerate: compute everything again.
        batch_size: clips of one size that the VAE encodes together.

    Raises:
        ConfigError: a wrong setting, or `trust` with `regenerate`.
        FileError: a folder is missing, holds nothing that can be used, or its cache cannot be written to.
    """
    if trust and regenerate:
        raise ConfigError("trust_cache and regenerate_cache exclude each other; give one of them")
    started = time.monotonic()
    folders = load_folders(dataset, facts)
    with Ranks.open() as ranks, ExitStack() as held:
        roots = _roots(folders, models, facts, cache_text, ranks)
        if regenerate:
            ranks.first(lambda: _lock(roots.values(), held))
            ranks.first(lambda: [root.clear() for root in roots.values()])
        for root in roots.values():
            root.find(trust)
        for folder in folders:
            roots[folder.path].want(folder)
        if not all(root.is_complete for root in roots.values()):
            if not regenerate:
                ranks.first(lambda: _lock(roots.values(), held))
                for root in roots.values():
                    root.find_stored(trust)
            _encode(roots.values(), models, batch_size)
        ranks.first(lambda: [root.write_indexes() for root in roots.values()])
    return _assembled(dataset, folders, roots, time.monotonic() - started)


def _roots(
    folders: Sequence[MediaFolder], models: CacheModels, facts: ModelFacts, cache_text: bool, ranks: Ranks
) -> dict[Path, CacheRoot]:
    dtype = str(models.dtype).removeprefix("torch.")
    latents = f"{models.vae_fingerprint()}-{dtype}"
    text = f"{models.text_fingerprint()}-{dtype}" if cache_text else None
    return {folder.path: CacheRoot(folder.path, latents, text, facts.fps, ranks) for folder in folders}


def _lock(roots: Iterable[CacheRoot], held: ExitStack) -> None:
    """Keep other runs from writing to these caches until `held` is closed."""
    for root in roots:
        place = root.folder / "index"
        require_writable(place)
        place.parent.mkdir(exist_ok=True)
        held.enter_context(StoreLock(place, LOCK_SECONDS).hold())


def _encode(roots: Iterable[CacheRoot], models: CacheModels, batch_size: int) -> None:
    """One model after the other, so that they are never in memory together."""
    get_vae = cache(models.vae)
    for root in roots:
        root.encode_latents(get_vae, batch_size, models.device, models.dtype)
    get_vae.cache_clear()
    _free(models.device)
    get_encoder = cache(models.text_encoder)
    for root in roots:
        root.encode_texts(get_encoder, models.dtype)
    get_encoder.cache_clear()
    _free(models.device)


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _assembled(
    dataset: Path, folders: Sequence[MediaFolder], roots: Mapping[Path, CacheRoot], seconds: float
) -> CachedDataset:
    placed = [(folder, entry) for root in roots.values() for folder, entry in root.entries]
    skipped = {file: reason for root in roots.values() for file, reason in root.skipped.items()}
    if not placed:
        why = f"{len(skipped)} files were skipped, first: {next(iter(skipped.values()))}" if skipped else "it is empty"
        raise FileError(f"{dataset} has no image or video to train on; {why}")
    placed.sort(key=lambda item: folders.index(item[0]))  # stable: within a folder, by name
    repeated = [entry for folder, entry in placed for _ in range(folder.num_repeats)]
    has_text = any(root.text is not None for root in roots.values())
    return CachedDataset(
        repeated,
        {path: root.latents.reader() for path, root in roots.items()},
        {path: root.text.reader() for path, root in roots.items() if root.text is not None} if has_text else None,
        _report(roots.values(), [entry for _, entry in placed], repeated, skipped, seconds),
    )


def _report(
    roots: Iterable[CacheRoot],
    entries: Sequence[Entry],
    repeated: Sequence[Entry],
    skipped: Mapping[str, str],
    seconds: float,
) -> CacheReport:
    used = {entry.path: entry for entry in entries}
    videos = [entry for path, entry in used.items() if is_video(path)]
    stills = {entry.path for entry in videos} - {entry.path for entry in entries if entry.size.num_frames > 1}
    captionless = {root.media / item.file for root in roots for item in root.items if not item.has_caption}
    latents, texts = [root.latents for root in roots], [root.text for root in roots if root.text is not None]
    num_latents, num_texts = (sum(item.num_computed for item in part) for part in (latents, texts))
    num_captions = sum(root.num_captions for root in roots if root.text is not None)
    return CacheReport(
        num_items=len(used),
        num_images=len(used) - len(videos),
        num_videos=len(videos),
        num_stills=len(stills),
        num_missing_captions=len(captionless & used.keys()),
        skipped=skipped,
        buckets=dict(Counter(entry.size for entry in repeated)),
        num_latents_computed=num_latents,
        num_latents_reused=sum(root.num_clips for root in roots) - num_latents,
        num_texts_computed=num_texts,
        num_texts_reused=num_captions - num_texts,
        seconds=seconds,
        num_bytes=sum(item.num_bytes() for item in (*latents, *texts)),
    )
