"""Where clips go: one file each, or one sheet of all."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentloom.errors import ConfigError, FileError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".mp4", ".gif", ".png")
INDEX = "{index}"


def clip_files(out: Path, num_clips: int) -> list[Path]:
    """The file of each clip; several clips and one .png make a single sheet.

    Args:
        out: a file, a name with `{index}`, or a folder (a name without suffix), which gets `0.mp4`, `1.mp4`, ...
        num_clips: how many clips there will be.

    Raises:
        FileError: another suffix than .mp4, .gif and .png.
        ConfigError: several clips would share one file.
    """
    if out.is_dir() or not out.suffix:
        return [out / f"{index}.mp4" for index in range(num_clips)]
    if out.suffix.lower() not in SUFFIXES:
        raise FileError(f"{out} is of no known format; end the name in {', '.join(SUFFIXES)}, or name a folder")
    if INDEX in str(out):
        return [Path(str(out).replace(INDEX, str(index))) for index in range(num_clips)]
    if num_clips > 1 and out.suffix.lower() != ".png":
        raise ConfigError(
            f"{num_clips} clips do not fit into {out}; name a folder, a .png sheet, or put {INDEX} into the name"
        )
    return [out]


def write_clips(files: list[Path], clips: "Tensor", captions: Sequence[str], fps: float) -> None:
    """Write clips to the files from `clip_files`, each whole or not at all.

    Args:
        files: one per clip, or one .png for all.
        clips: [B, T, H, W, 3] bytes.
        captions: one per clip; only a sheet shows them.
        fps: frames per second.
    """
    from latentloom.storage import write_contact_sheet, write_video

    if len(files) < len(clips):
        write_contact_sheet(files[0], list(clips), captions)
        return
    for file, clip in zip(files, clips, strict=True):
        write_video(file, clip, fps)
