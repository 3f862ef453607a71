"""A clip out of a shard, and the checks that every one of them goes through."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from latentloom.drifting.clips.shards import Shards
from latentloom.errors import CorruptFileError
from latentloom.storage.foreign import read_pt_bytes

LATENT, TEXT, PROMPT, ANCHORS = "latent.pt", "embed.pt", "prompt.txt", "anchors.pt"
MEMBERS = (LATENT, TEXT, PROMPT, ANCHORS)
CUT_OFF = "cut-off"  # stands for the members that a damaged tar has lost

Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Anchors:
    """Keyframes that another model made for a clip.

    Attributes:
        index: number of the frame of each.
        values: as the clip's.
    """

    index: Int64[Tensor, "K"]
    values: Float[Tensor, "C K H W"]


@dataclass(frozen=True, eq=False)
class ClipSample:
    """One clip.

    Attributes:
        key: its name in the shard.
        values: C channels of T frames in float32: normalised latents, or RGB from -1 to 1.
        text: what the text encoder says about the prompt: L tokens of D channels; None where there are no texts.
        prompt: empty where there is none.
        anchors: another model's keyframes; None where there are none.
    """

    key: str
    values: Float[Tensor, "C T H W"]
    text: Float[Tensor, "L D"] | None
    prompt: str
    anchors: Anchors | None


class BadClipError(Exception):
    """A clip that is skipped.

    Args:
        reason: in the words it is counted under.
        detail: what exactly is wrong with this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class ClipForm:
    """What all clips of a set have in common.

    Attributes:
        shape: channels, frames, rows and columns.
        text_width: channels of a text token; None without texts.
    """

    shape: Shape
    text_width: int | None


class ClipDecoder:
    """Turns the members of clips into clips, and refuses those that are not like the others.

    What they must be like stands in the manifest; without one, the first sound clip decides.

    Args:
        shards: where the clips are from.
        form: what clips are like, where it is known already.
    """

    def __init__(self, shards: Shards, form: ClipForm | None = None) -> None:
        manifest = shards.manifest
        self.channels = shards.channels
        self.form = form if manifest is None else ClipForm(manifest.shape, manifest.text_width)

    def decode(self, key: str, members: Mapping[str, bytes]) -> ClipSample:
        """The clip, every member of it checked.

        Args:
            key: its name.
            members: content by suffix, such as "latent.pt".

        Raises:
            BadClipError: a member is missing, damaged, or not like that of the other clips.
        """
        return self.decode_stored(members).sample(key)

    def decode_stored(self, members: Mapping[str, bytes]) -> "StoredClip":
        """The clip in the types it is stored in; as `decode`."""
        if CUT_OFF in members:
            raise BadClipError("damaged tar", "the tar ends or breaks off here")
        if LATENT not in members:
            raise BadClipError("no latent", f"it has {', '.join(sorted(members)) or 'nothing'}")
        values = _stored_tensor(members[LATENT], "latent")
        self._check_shape(tuple(values.shape))
        _refuse_infinite(values, "latent")
        text = _text(members)
        shape = (values.shape[0], values.shape[1], values.shape[2], values.shape[3])
        width = None if text is None else text.shape[1]
        form = self.form or ClipForm(shape, width)
        if width != form.text_width:
            reason = "no text" if text is None else "text of another width"
            raise BadClipError(reason, f"{width or 'no'} channels, not {form.text_width or 'none'}")
        clip = StoredClip(values, text, _prompt(members), _anchors(members, shape))
        self.form = form
        return clip

    def _check_shape(self, shape: tuple[int, ...]) -> None:
        detail = f"of shape {list(shape)}"
        if len(shape) != 4 or 0 in shape:
            raise BadClipError("another shape", f"{detail}, not [C, T, H, W]")
        expected = self.form.shape if self.form else None
        if (expected and shape == expected) or (not expected and self.channels in (None, shape[0])):
            return
        wanted = f"not {list(expected)}" if expected else f"not of {self.channels} channels"
        turned = (shape[1], shape[0], *shape[2:])
        if turned == expected or (not expected and shape[1] == self.channels):
            raise BadClipError("another order of dimensions", f"{detail} is [T, C, H, W], {wanted}")
        raise BadClipError("another shape", f"{detail}, {wanted}")


@dataclass(frozen=True, eq=False)
class StoredClip:
    """A clip in the types it is stored in; the text is cut to its true length."""

    values: Float[Tensor, "C T H W"]
    text: Float[Tensor, "L D"] | None
    prompt: str
    anchors: Anchors | None

    def sample(self, key: str) -> ClipSample:
        """The clip in float32."""
        text, anchors = self.text, self.anchors
        return ClipSample(
            key,
            self.values.float().contiguous(),
            None if text is None else text.float().contiguous(),
            self.prompt,
            None if anchors is None else Anchors(anchors.index, anchors.values.float().contiguous()),
        )


def _stored_tensor(data: bytes, what: str) -> Float[Tensor, "..."]:
    loaded = _load(data, what)
    if not isinstance(loaded, Tensor) or not loaded.is_floating_point() or loaded.layout != torch.strided:
        found = f"{loaded.dtype} tensor" if isinstance(loaded, Tensor) else type(loaded).__name__
        raise BadClipError(f"unreadable {what}", f"a {found}, not a tensor of floating point numbers")
    return loaded.detach()


def _refuse_infinite(values: Float[Tensor, "..."], what: str) -> None:
    # a sum that is finite is one of finite numbers, and is had many times faster than asking each of them
    if not bool(values.sum(dtype=torch.float32).isfinite()) and not bool(values.isfinite().all()):
        raise BadClipError(f"{what} not finite", f"{int((~values.isfinite()).sum())} of {values.numel()} values")


def _load(data: bytes, what: str) -> Any:
    try:
        return read_pt_bytes(data, "it")
    except CorruptFileError as error:
        raise BadClipError(f"unreadable {what}", str(error)) from error


def _text(members: Mapping[str, bytes]) -> Float[Tensor, "L D"] | None:
    if TEXT not in members:
        return None
    padded = _stored_tensor(members[TEXT], "text")
    if padded.ndim != 2 or 0 in padded.shape:
        raise BadClipError("unreadable text", f"of shape {list(padded.shape)}, not [tokens, channels]")
    rows = padded.float().abs().amax(dim=1).ne(0).nonzero()  # of what is not a number, too
    text = padded[: int(rows[-1]) + 1 if len(rows) else 0]
    _refuse_infinite(text, "text")
    return text


def _prompt(members: Mapping[str, bytes]) -> str:
    try:
        return members.get(PROMPT, b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadClipError("unreadable prompt", "not UTF-8") from error


def _anchors(members: Mapping[str, bytes], shape: Shape) -> Anchors | None:
    return decode_anchors(members[ANCHORS], shape) if ANCHORS in members else None


def decode_anchors(data: bytes, shape: Shape) -> Anchors:
    """Another model's keyframes out of their member alone, in the type they are stored in.

    Args:
        data: content of the member.
        shape: of the clip: channels, frames, rows and columns.

    Raises:
        BadClipError: it is damaged, or not of such a clip.
    """
    loaded = _load(data, "anchors")
    index, values = (
        (loaded.get(name) for name in ("anchor_idx", "anchor_values")) if isinstance(loaded, dict) else (0, 0)
    )
    if not isinstance(index, Tensor) or not isinstance(values, Tensor):
        raise BadClipError("unreadable anchors", "not {anchor_idx, anchor_values}")
    if index.dtype != torch.int64 or index.ndim != 1 or not values.is_floating_point():
        raise BadClipError("unreadable anchors", "anchor_idx is not Int64 [K], or anchor_values no numbers")
    channels, num_frames, *rest = shape
    if tuple(values.shape) != (channels, len(index), *rest):
        raise BadClipError("anchors of another shape", f"{list(values.shape)} for {len(index)} frames of {list(shape)}")
    if len(index.unique()) != len(index) or bool(((index < 0) | (index >= num_frames)).any()):
        raise BadClipError("unreadable anchors", f"frames {index.tolist()} of a clip of {num_frames}")
    _refuse_infinite(values, "anchors")
    return Anchors(index, values.detach())
