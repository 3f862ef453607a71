"""A cached data set, read one example at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentloom.finetune.cache.report import CacheReport
from latentloom.finetune.cache.shards import ShardReader
from latentloom.finetune.data import Example
from latentloom.wan.clip_size import ClipSize


@dataclass(frozen=True)
class Entry:
    """One item in one size.

    Args:
        name: the folder's name and the file's.
        folder, file: of the media.
        latents, text: keys of what is cached.
    """

    name: str
    folder: Path
    file: str
    size: ClipSize
    caption: str
    latents: str
    text: str

    @property
    def path(self) -> Path:
        """Of the image or video."""
        return self.folder / self.file


class CachedDataset:
    """Examples in a fixed order; an item of a folder with `num_repeats` stands there as often, under one name.

    `sizes` and `names` have one entry per example; an item's repeats and resolutions share their name.

    Args:
        entries: repeats included.
        latents: readers by folder of media.
        text: the same for the captions; None where they are not cached.
        report: what caching found and did.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        latents: dict[Path, ShardReader],
        text: dict[Path, ShardReader] | None,
        report: CacheReport,
    ) -> None:
        self.report = report
        self.sizes: Sequence[ClipSize] = [entry.size for entry in entries]
        self.names: Sequence[str] = [entry.name for entry in entries]
        self._entries = entries
        self._latents = latents
        self._text = text

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        """The example, its latents in float32.

        Raises:
            CorruptFileError: its shard was damaged since the cache was checked.
        """
        entry = self._entries[index]
        latents = self._latents[entry.folder].read(entry.latents).float()
        text = None if self._text is None else self._text[entry.folder].read(entry.text)
        return Example(latents, entry.caption, text)
