"""Where the sound clips of some shards are: every clip is read and checked once, and the finding is kept in a file."""

import hashlib
import io
import json
import logging
import math
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from latentloom.drifting.clips.clip_sample import (
    CUT_OFF,
    LATENT,
    TEXT,
    Anchors,
    BadClipError,
    ClipDecoder,
    ClipForm,
    ClipSample,
    Shape,
    decode_anchors,
)
from latentloom.drifting.clips.shard_stream import TWICE, is_member, log_skipped, no_clip_left, stem_and_suffix
from latentloom.drifting.clips.shards import Shards, ends_whole
from latentloom.errors import CorruptFileError, FileError
from latentloom.runs import process_rank, track
from latentloom.runs.process_group import wait_for_all
from latentloom.storage import write_text

logger = logging.getLogger(__name__)

VERSION = 1
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name


@dataclass(frozen=True)
class Span:
    """A tensor that lies in a tar as it is.

    Attributes:
        start: byte of the tar.
        dtype: by name.
        shape: its sizes.
    """

    start: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def tensor(self, data: bytes) -> Shaped[Tensor, "..."]:
        """The tensor of its bytes."""
        if not data:
            return torch.empty(self.shape, dtype=DTYPES[self.dtype])
        return torch.frombuffer(bytearray(data), dtype=DTYPES[self.dtype]).view(self.shape)


@dataclass(frozen=True)
class ClipPlace:
    """Where a clip is.

    Attributes:
        key: its name.
        shard: number of its tar.
        members: first byte and number of bytes by suffix.
        latent, text: the tensors themselves; None where one does not lie there as it is (a transposed one, say).
    """

    key: str
    shard: int
    members: dict[str, tuple[int, int]]
    latent: Span | None
    text: Span | None


@dataclass(frozen=True)
class ScannedShards:
    """The sound clips of some shards.

    Attributes:
        shards: the tars.
        clips: in their order.
        form: what all of them are like.
        skipped: by reason, how many are left out.
        fingerprint: of the content of all clips.
    """

    shards: Shards
    clips: tuple[ClipPlace, ...]
    form: ClipForm
    skipped: Counter[str]
    fingerprint: str

    def decode(self, clip: ClipPlace, members: Mapping[str, bytes]) -> ClipSample:
        """The clip of these members.

        Raises:
            CorruptFileError: it is not what it was when the shards were opened.
        """
        with self._change_said(clip):
            return ClipDecoder(self.shards, self.form).decode(clip.key, members)

    def decode_anchors(self, clip: ClipPlace, data: bytes) -> Anchors:
        """The clip's anchors out of their member.

        Raises:
            CorruptFileError: it is not what it was when the shards were opened.
        """
        with self._change_said(clip):
            return decode_anchors(data, self.form.shape)

    @contextmanager
    def _change_said(self, clip: ClipPlace) -> Iterator[None]:
        try:
            yield
        except BadClipError as bad:
            path = self.shards.paths[clip.shard]
            raise CorruptFileError(f"{path} has changed, {clip.key}: {bad}; open the shards again") from bad


def find_clips(shards: Shards) -> ScannedShards:
    """All sound clips, out of the file beside the tars if that is still about them, otherwise looked for.

    Of several processes, all of which call this, the first one looks, and the others read what it found.

    Raises:
        CorruptFileError: there is none.
    """
    if process_rank() != 0:
        wait_for_all()
        return _found(shards)
    try:
        return _found(shards)
    finally:
        wait_for_all()  # also after an error, which the others then come to as well


def _found(shards: Shards) -> ScannedShards:
    cache = _cache_path(shards)
    tars = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in shards.paths]
    manifest = None if shards.manifest is None else shards.manifest.model_dump(mode="json")
    about = {"version": VERSION, "tars": tars, "manifest": manifest, "channels": shards.channels}
    found = _read_cache(cache, about, shards) if cache is not None else None
    if found is None:
        found = _scan(shards)
        if cache is not None:
            _write_cache(cache, about, found)
    return found


def _scan(shards: Shards) -> ScannedShards:
    decoder = ClipDecoder(shards)
    skipped: Counter[str] = Counter()
    named: set[str] = set()
    clips: list[ClipPlace] = []
    digest = hashlib.sha256(json.dumps(shards.manifest and shards.manifest.space).encode())
    for number in track(len(shards.paths), "checking shards"):
        path = shards.paths[number]
        for key, members in _clips_of(path):
            if members.pop(TWICE, None) is not None:
                skipped[TWICE] += 1
            try:
                clip, checksum = _check(decoder, path, number, key, members)
            except BadClipError as bad:
                skipped[bad.reason] += 1
                log_skipped(named, f"{path}: {key}", bad)
            else:
                clips.append(clip)
                digest.update(f"{key}{checksum}".encode())
    if not clips or decoder.form is None:
        raise no_clip_left(shards, skipped)
    return ScannedShards(shards, tuple(clips), decoder.form, skipped, digest.hexdigest()[:16])


def _clips_of(path: Path) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """Key and members of every clip of a tar, from its headers alone."""
    key = ""
    members: dict[str, tuple[int, int]] = {}
    for name, start, num_bytes in _headers(path):
        stem, suffix = stem_and_suffix(name)
        if stem != key and members:
            yield key, members
            members = {}
        key = stem
        if suffix in members:
            members[TWICE] = (start, num_bytes)
        else:
            members[suffix] = (start, num_bytes)
    if members:
        yield key, members


def _headers(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first byte and size of the members of clips; where the tar is damaged, one that says so ends it."""
    size, is_whole, latest = path.stat().st_size, ends_whole(path), "tar.none"
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.offset_data + member.size > size:
                    is_whole = False
                    break
                if member.isreg() and is_member(member.name):
                    latest = member.name
                    yield member.name, member.offset_data, member.size
            end = tar.offset
        with path.open("rb") as file:
            file.seek(end)
            is_whole = is_whole and not any(file.read(tarfile.BLOCKSIZE))  # a broken header ends it without a word
    except (tarfile.TarError, OSError, EOFError) as error:
        logger.debug("%s: %s", path, error)
        is_whole = False
    if not is_whole:
        yield f"{stem_and_suffix(latest)[0]}.{CUT_OFF}", 0, 0


def _check(
    decoder: ClipDecoder, path: Path, shard: int, key: str, members: dict[str, tuple[int, int]]
) -> tuple[ClipPlace, int]:
    """Where a sound clip is, and a checksum of it."""
    with path.open("rb") as file:
        data = {}
        for suffix, (start, num_bytes) in members.items():
            file.seek(start)
            data[suffix] = file.read(num_bytes)
    clip = decoder.decode_stored(data)
    checksum = 0
    for suffix in sorted(data):
        checksum = zlib.crc32(data[suffix], checksum)
    latent = _span(data[LATENT], members[LATENT][0], clip.values)
    text = None if clip.text is None else _span(data[TEXT], members[TEXT][0], clip.text)
    return ClipPlace(key, shard, members, latent, text), checksum


def _span(data: bytes, start: int, tensor: Tensor) -> Span | None:
    """Where the numbers of a tensor lie in the tar, if they lie there one after the other."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES or not tensor.is_contiguous():
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [part for part in archive.infolist() if "/data/" in part.filename]
    if len(parts) != 1:
        return None
    header = parts[0].header_offset
    name_and_extra = int.from_bytes(data[header + 26 : header + 28], "little")
    name_and_extra += int.from_bytes(data[header + 28 : header + 30], "little")
    offset = header + LOCAL_HEADER + name_and_extra + int(tensor.storage_offset()) * tensor.element_size()
    span = Span(start + offset, dtype, tuple(tensor.shape))
    found = data[offset : offset + span.num_bytes]
    # what is read this way later is what torch reads, or is not read this way
    return span if found == tensor.contiguous().view(torch.uint8).numpy().tobytes() else None


def _cache_path(shards: Shards) -> Path | None:
    """The file that keeps what was found; none where the tars are of several folders."""
    if len(shards.folders) != 1:
        return None
    names = json.dumps([[path.name for path in shards.paths], shards.channels])
    return shards.folders[0] / f".clips-{hashlib.sha256(names.encode()).hexdigest()[:12]}.json"


@dataclass(frozen=True)
class _Kept:
    """What the file holds."""

    about: dict[str, Any]
    clips: list[ClipPlace]
    shape: Shape
    text_width: int | None
    skipped: dict[str, int]
    fingerprint: str


def _write_cache(path: Path, about: dict[str, Any], found: ScannedShards) -> None:
    kept = _Kept(
        about, list(found.clips), found.form.shape, found.form.text_width, dict(found.skipped), found.fingerprint
    )
    try:
        write_text(path, json.dumps(asdict(kept), separators=(",", ":")))
    except FileError as error:  # a read-only data set is used as well, only that it is looked through every time
        logger.info("the index is kept in memory alone: %s", error)


def _read_cache(path: Path, about: dict[str, Any], shards: Shards) -> ScannedShards | None:
    if not path.is_file():
        return None
    try:
        kept = TypeAdapter(_Kept).validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        logger.warning("%s is damaged (%s); the shards are looked through again", path, type(error).__name__)
        return None
    if json.loads(json.dumps(about)) != kept.about or not kept.clips:
        return None
    form = ClipForm(kept.shape, kept.text_width)
    return ScannedShards(shards, tuple(kept.clips), form, Counter(kept.skipped), kept.fingerprint)
