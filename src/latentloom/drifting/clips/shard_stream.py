"""Clips read one after the other, holding no more than one of them."""

import logging
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

from latentloom.drifting.clips.clip_sample import CUT_OFF, MEMBERS, BadClipError, ClipDecoder, ClipSample
from latentloom.drifting.clips.shards import Shards, ends_whole, find_shards
from latentloom.errors import CorruptFileError

logger = logging.getLogger(__name__)

TWICE = "member twice"  # of which the first is used
NUM_NAMED = 20  # skipped clips that the log names; the others are counted
REST_AT_ONCE = 2**20


def stream_shards(root: Path | str, channels: int | None = None) -> "ShardStream":
    """The clips of some shards in their order, in constant memory.

    Args:
        root: a folder of tars, or a brace pattern such as `shards/shard-{00000..00009}.tar`.
        channels: that clips must have; None takes what the manifest or the first clip has.

    Raises:
        FileError: there are no shards.
        ShapeError: the manifest tells of another number of channels.
    """
    return ShardStream(find_shards(root, channels))


class ShardStream:
    """An iterable of clips; every iteration starts anew.

    Args:
        shards: where they are.

    Attributes:
        skipped: by reason, how many clips the latest iteration has left out so far.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards = shards
        self.skipped: Counter[str] = Counter()
        self._named: set[str] = set()

    def __iter__(self) -> Iterator[ClipSample]:
        """The sound clips.

        Raises:
            CorruptFileError: at the end, if there was none.
        """
        self.skipped = Counter()
        decoder = ClipDecoder(self.shards)
        num_clips = 0
        for sample in group_by_keys(self._members(), handler=self._count_failure):
            key, place = sample.pop("__key__"), sample.pop("__url__")
            try:
                clip = decoder.decode(key, sample)
            except BadClipError as bad:
                self._count(bad, f"{place}: {key}")
            else:
                num_clips += 1
                yield clip
        if not num_clips:
            raise no_clip_left(self.shards, self.skipped)

    def _members(self) -> Iterator[dict[str, Any]]:
        for path in self.shards.paths:
            latest = None
            try:
                is_whole = ends_whole(path)
                with path.open("rb") as file:
                    source = {"url": str(path), "stream": file}
                    for member in tar_file_expander([source], select_files=is_member, eof_value=None):
                        latest = member["fname"]
                        yield member
                    while rest := file.read(REST_AT_ONCE):  # a broken header ends the reading without a word
                        is_whole = is_whole and not any(rest)
            except (tarfile.TarError, OSError, EOFError) as error:
                logger.debug("%s: %s", path, error)
                is_whole = False
            if not is_whole and latest is not None:
                yield {"fname": f"{stem_and_suffix(latest)[0]}.{CUT_OFF}", "data": b"", "__url__": str(path)}
            elif not is_whole:
                self._count(BadClipError("damaged tar", "nothing can be read from it"), str(path))
            yield {}  # where a shard ends, a clip ends

    def _count_failure(self, error: Exception) -> bool:
        self._count(BadClipError(TWICE, str(error.args[0])[:100]), "")
        return True

    def _count(self, bad: BadClipError, place: str) -> None:
        self.skipped[bad.reason] += 1
        log_skipped(self._named, place, bad)


def is_member(name: str) -> bool:
    """True for the members of a tar that belong to clips."""
    return stem_and_suffix(name)[1] in MEMBERS


def stem_and_suffix(name: str) -> tuple[str, str]:
    """Key of the clip and kind of the member, as webdataset divides a name; empty where it has no suffix."""
    stem, suffix = base_plus_ext(name)
    return stem or "", (suffix or "").lower()


def log_skipped(named: set[str], place: str, bad: BadClipError) -> None:
    """Name a skipped clip in the log, once; after the first of them no more.

    Args:
        named: those that were named, which grows.
        place: shard and key.
        bad: what is wrong with it.
    """
    if place in named or len(named) > NUM_NAMED:
        return
    named.add(place)
    if len(named) > NUM_NAMED:
        logger.warning("more clips are skipped; they are counted and no longer named")
    else:
        logger.warning("%s is skipped: %s", place, bad)


def no_clip_left(shards: Shards, skipped: Counter[str]) -> CorruptFileError:
    """The error for shards without a single sound clip."""
    reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.most_common()) or "they are empty"
    wanted = f" of {shards.channels} channels" if shards.channels is not None else ""
    return CorruptFileError(f"{shards.root} holds no clip{wanted} that can be used: {reasons}; give other shards")
