"""Random access to the clips of shards: where each one is, found once and kept beside the tars."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from latentloom.drifting.clips.clip_sample import ANCHORS, PROMPT, ClipSample
from latentloom.drifting.clips.manifest import ShardManifest
from latentloom.drifting.clips.shard_scan import ClipPlace, ScannedShards, Span, find_clips
from latentloom.drifting.clips.shards import find_shards
from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.tensors import TextEmbeddings

WHOLE_AT_MOST = 2**16  # bytes of a clip: smaller ones are read sooner as a whole than frame by frame
Rows = Int64[Tensor, "B"] | Sequence[int]


class ShardIndex:
    """The sound clips of some shards by number; opened with `ShardIndex.open`.

    Args:
        scanned: where the clips are.

    Attributes:
        keys: name of each clip in its shard; shards of other programs may use a name more than once.
        shape: channels, frames, rows and columns of every clip.
        text_width: channels of a text token; None without texts.
        manifest: what the writer said; None for shards of other programs.
        fingerprint: tells these clips from all others by their content.
        skipped: by reason, how many clips are left out.
    """

    def __init__(self, scanned: ScannedShards) -> None:
        self._scanned = scanned
        self._clips = scanned.clips
        self.keys: tuple[str, ...] = tuple(clip.key for clip in scanned.clips)
        self.shape = scanned.form.shape
        self.text_width = scanned.form.text_width
        self.manifest: ShardManifest | None = scanned.shards.manifest
        self.fingerprint = scanned.fingerprint
        self.skipped = scanned.skipped

    @classmethod
    def open(cls, root: Path | str, channels: int | None = None) -> "ShardIndex":
        """The clips of a folder of tars, or of a brace pattern such as `shards/shard-{00000..00009}.tar`.

        The first time every clip is read and checked; what is found is kept in a file beside the tars, where that
        folder can be written to, and used again until a tar changes.

        Args:
            root: folder or pattern.
            channels: that clips must have; None takes what the manifest or the first clip has.

        Raises:
            FileError: there are no shards.
            ShapeError: the manifest tells of another number of channels.
            CorruptFileError: no clip can be used.
        """
        return cls(find_clips(find_shards(root, channels)))

    def __len__(self) -> int:
        return len(self._clips)

    def load(self, rows: Rows) -> Float[Tensor, "B C T H W"]:
        """Clips in float32 on the CPU.

        Raises:
            CorruptFileError: a tar has changed since it was opened.
        """
        values = torch.empty(len(rows), *self.shape)
        for place, clip, read in self._visit(rows):
            if clip.latent is not None:
                values[place] = read.tensor(clip.latent)
            else:  # it does not lie in the file as it is
                values[place] = read.sample(clip).values
        return values

    def load_frames(self, rows: Rows, frames: Rows) -> Float[Tensor, "B C H W"]:
        """Single frames of clips in float32 on the CPU; of large clips nothing else is read.

        Args:
            rows: clips, which may repeat.
            frames: number of the frame of each.

        Raises:
            CorruptFileError: a tar has changed since it was opened.
        """
        channels, num_frames, *sides = self.shape
        wanted = _numbers(frames)
        outside = [number for number in wanted if not 0 <= number < num_frames]
        if outside:
            raise IndexError(f"frame {outside[0]} of {num_frames}")
        values = torch.empty(len(wanted), channels, *sides)
        latest, whole = None, torch.empty(0)
        for place, clip, read in self._visit(rows):
            if clip.latent is not None and clip.latent.num_bytes > WHOLE_AT_MOST:
                values[place] = torch.stack([read.tensor(part) for part in _frame_spans(clip.latent, wanted[place])])
                continue
            if clip is not latest:  # the frames of a clip come one after the other
                latest = clip
                whole = read.tensor(clip.latent) if clip.latent is not None else read.sample(clip).values
            values[place] = whole[:, wanted[place]]
        return values

    def load_text(self, rows: Rows) -> TextEmbeddings:
        """What the text encoder says about the clips' prompts, in float32.

        Raises:
            ConfigError: the shards have no texts.
            CorruptFileError: a tar has changed since it was opened.
        """
        if self.text_width is None:
            raise ConfigError(f"{self._scanned.shards.root} holds no text embeddings; make shards with them")
        texts = [torch.empty(0, self.text_width)] * len(rows)
        for place, clip, read in self._visit(rows):
            text = read.tensor(clip.text) if clip.text is not None else read.sample(clip).text
            if text is not None:
                texts[place] = text.float()
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        return TextEmbeddings(torch.cat([torch.empty(0, self.text_width), *texts]), lengths)

    def prompts(self, rows: Rows) -> list[str]:
        """The clips' prompts; empty where there is none."""
        prompts = [""] * len(rows)
        for place, clip, read in self._visit(rows):
            if PROMPT in clip.members:
                prompts[place] = read.bytes(*clip.members[PROMPT]).decode("utf-8")
        return prompts

    def load_anchors(self, rows: Rows) -> tuple[Float[Tensor, "B C T H W"], Bool[Tensor, "B T"]]:
        """Another model's keyframes at their places, zeros elsewhere, and true where there is one."""
        values = torch.zeros(len(rows), *self.shape)
        has_student = torch.zeros(len(rows), self.shape[1], dtype=torch.bool)
        for place, clip, read in self._visit(rows):
            if ANCHORS in clip.members:
                anchors = self._scanned.decode_anchors(clip, read.bytes(*clip.members[ANCHORS]))
                values[place][:, anchors.index] = anchors.values.float()
                has_student[place, anchors.index] = True
        return values, has_student

    def has_anchors(self, rows: Rows) -> bool:
        """True if one of these clips has another model's keyframes; nothing is read."""
        return any(ANCHORS in self._clips[number].members for number in self._numbers(rows))

    def sample(self, row: int) -> ClipSample:
        """One clip with all that belongs to it."""
        return next(read.sample(clip) for _, clip, read in self._visit([row]))

    def _visit(self, rows: Rows) -> Iterator[tuple[int, ClipPlace, "_TarReader"]]:
        """Place in the batch, clip, and an open tar to read from; every tar is opened once."""
        numbers = self._numbers(rows)
        order = sorted(range(len(numbers)), key=lambda place: numbers[place])
        for shard, places in groupby(order, key=lambda place: self._clips[numbers[place]].shard):
            with _TarReader(self._scanned, shard) as reader:
                for place in places:
                    yield place, self._clips[numbers[place]], reader

    def _numbers(self, rows: Rows) -> list[int]:
        numbers = _numbers(rows)
        outside = [number for number in numbers if not 0 <= number < len(self)]
        if outside:
            raise IndexError(f"clip {outside[0]} of {len(self)}")
        return numbers


def _numbers(rows: Rows) -> list[int]:
    return [int(row) for row in (rows.tolist() if isinstance(rows, Tensor) else rows)]


def _frame_spans(clip: Span, frame: int) -> list[Span]:
    """Where a frame's channels lie."""
    channels, num_frames, *sides = clip.shape
    first = Span(clip.start, clip.dtype, tuple(sides))
    starts = [clip.start + (channel * num_frames + frame) * first.num_bytes for channel in range(channels)]
    return [replace(first, start=start) for start in starts]


class _TarReader:
    """Reads clips out of one tar."""

    def __init__(self, scanned: ScannedShards, shard: int) -> None:
        self._scanned = scanned
        self._path = scanned.shards.paths[shard]
        try:
            self._file = self._path.open("rb", buffering=0)
        except OSError as error:
            raise FileError(f"{self._path}: {error.strerror}; put it back, or open the shards again") from error

    def __enter__(self) -> "_TarReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def bytes(self, start: int, num_bytes: int) -> bytes:
        self._file.seek(start)
        data = self._file.read(num_bytes)
        if len(data) != num_bytes:
            raise CorruptFileError(f"{self._path} is shorter than it was; open the shards again")
        return data

    def tensor(self, span: Span) -> Float[Tensor, "..."]:
        return span.tensor(self.bytes(span.start, span.num_bytes))

    def sample(self, clip: ClipPlace) -> ClipSample:
        members = {suffix: self.bytes(*where) for suffix, where in clip.members.items()}
        return self._scanned.decode(clip, members)
