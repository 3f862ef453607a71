"""Captioned clips of the world, one by one or as a folder of media: a video file and a text file each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from latentloom.errors import ConfigError, FileError
from latentloom.micro.attributes import Attributes, split
from latentloom.micro.captions import caption
from latentloom.micro.lexicon import LEXICONS, Lexicon
from latentloom.micro.new_words import attributes_to_teach, meanings_of
from latentloom.micro.world import draw_clips
from latentloom.runs import track
from latentloom.storage import write_text, write_video
from latentloom.wan import facts

_SPLITS = ("train", "held_out", "unseen_pair")


def write_clips(
    folder: Path,
    num_clips: int,
    *,
    num_frames: int = 9,
    frame_size: int = 48,
    split_name: str = "train",
    lexicon: str = "seen",
    words: Sequence[str] = (),
    word_share: float = 0.5,
    seed: int = 0,
) -> None:
    """Write `00000.mp4`, `00000.txt` and so on; clip i is the same whatever `num_clips` is.

    Args:
        folder: a new or empty folder.
        num_clips: how many.
        num_frames, frame_size: see `draw_clips`.
        split_name: "train", "held_out" or "unseen_pair".
        lexicon: whose words the captions use; the telegraphic one makes telegraphic captions.
        words: new words to teach, see `new_words.meanings_of`; without any, captions keep to the lexicon.
        word_share: of clips whose caption has one of them.
        seed: of attributes, geometry and words.

    Raises:
        ConfigError: an unknown split, lexicon or size.
        FileError: the folder holds something already.
    """
    drawn = draw_captioned(
        num_clips,
        num_frames=num_frames,
        frame_size=frame_size,
        split_name=split_name,
        lexicon=lexicon,
        words=words,
        word_share=word_share,
        seed=seed,
    )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} is not empty: give a new folder to --out")
    for index in track(num_clips, "draw clips"):
        clip = next(drawn)
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"{index:05d}.mp4", clip.frames, facts.get("micro").fps)
        write_text(folder / f"{index:05d}.txt", clip.caption + "\n")


@dataclass(frozen=True, eq=False)
class CaptionedClip:
    """A drawn clip.

    Attributes:
        frames: RGB, as a video file stores it.
        caption: what it shows, in words.
        attributes: what it shows.
    """

    frames: UInt8[Tensor, "T H W 3"]
    caption: str
    attributes: Attributes


def draw_captioned(
    num_clips: int,
    *,
    num_frames: int = 9,
    frame_size: int = 48,
    split_name: str = "train",
    lexicon: str = "seen",
    words: Sequence[str] = (),
    word_share: float = 0.5,
    seed: int = 0,
) -> Iterator[CaptionedClip]:
    """Clips with captions, drawn when they are asked for; arguments and errors as for `write_clips`."""
    if split_name not in _SPLITS:
        raise ConfigError(f"unknown split {split_name!r}: choose from {', '.join(_SPLITS)}")
    if lexicon not in LEXICONS:
        raise ConfigError(f"unknown lexicon {lexicon!r}: choose from {', '.join(get_args(Lexicon))}")
    style = "telegraphic" if lexicon == "telegraphic" else "verbose"
    choices, meanings = split(split_name), meanings_of(words)

    def draw(index: int) -> CaptionedClip:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        attributes, taught = attributes_to_teach(meanings, word_share, choices, generator)
        clip = draw_clips([attributes], generator, num_frames=num_frames, frame_size=frame_size)[0]
        frames = clip.permute(1, 2, 3, 0).mul(255).round().to(torch.uint8)
        return CaptionedClip(frames, caption(attributes, style, generator, lexicon, taught), attributes)

    return map(draw, range(num_clips))
