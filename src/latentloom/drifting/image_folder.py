"""Image files in one folder per class, decoded when a batch asks for them."""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from latentloom.drifting.images import Images, pixels_from_bytes
from latentloom.errors import CorruptFileError, FileError
from latentloom.runs import track

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
NUM_DECODERS = min(8, os.cpu_count() or 1)
NUM_NAMED = 5  # unreadable files that a warning names

# what Pillow raises on damaged files
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageFiles:
    """The image files of a folder with one subfolder per class, not yet opened.

    Attributes:
        root: the folder.
        files: in the order of their names.
        labels: class number of each file.
        class_names: the subfolders that hold images, by name; images may lie deeper in them.
    """

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, root: Path) -> "ImageFiles":
        """List a folder.

        Raises:
            FileError: no such folder, or one without classes or images.
        """
        if not root.is_dir():
            raise FileError(f"{root} is no folder; give one with a subfolder of images for each class")
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            raise FileError(f"{root} has no subfolders; put the images of each class into one named after the class")
        by_class = {folder.name: sorted(_images_below(folder)) for folder in folders}
        empty = [name for name, files in by_class.items() if not files]
        if len(empty) == len(folders):
            suffixes = ", ".join(sorted(SUFFIXES))
            raise FileError(f"the {len(folders)} subfolders of {root} hold no images ({suffixes}); give another folder")
        if empty:
            logger.warning("%s: no classes, as they hold no images: %s", root, _named(empty))
        by_class = {name: files for name, files in by_class.items() if files}
        labels = tuple(number for number, files in enumerate(by_class.values()) for _ in files)
        return cls(root, tuple(file for files in by_class.values() for file in files), labels, tuple(by_class))

    def fingerprint(self, size: int) -> str:
        """Tells these files, by name, size and time of change, and the size they are brought to, from others."""
        digest = hashlib.sha256(f"image folder {size}".encode())
        for file in self.files:
            facts = file.stat()
            entry = [file.relative_to(self.root).as_posix(), facts.st_size, facts.st_mtime_ns]
            digest.update(json.dumps(entry).encode())
        return digest.hexdigest()


class FolderImages(Images):
    """The files of a folder that can be decoded, as RGB images of one size; a batch is decoded by several threads.

    Every file is decoded once when the set is made. What cannot be read is named in a warning and left out.

    Args:
        listed: the files.
        size: height and width in pixels: the shorter side is brought to it, and the middle is cut out.

    Raises:
        FileError: none of the files can be decoded.
    """

    def __init__(self, listed: ImageFiles, size: int) -> None:
        with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
            checks = pool.map(_is_broken, listed.files)
            is_broken = [next(checks) for _ in track(len(listed.files), "checking images")]
        broken = [str(file) for file, found in zip(listed.files, is_broken, strict=True) if found]
        if len(broken) == len(listed.files):
            raise FileError(f"none of the {len(broken)} image files in {listed.root} can be decoded; give other images")
        if broken:
            logger.warning("left out %d of %d unreadable images: %s", len(broken), len(listed.files), _named(broken))
        rows = [row for row, found in enumerate(is_broken) if not found]
        labels = torch.tensor([listed.labels[row] for row in rows])
        super().__init__(labels, listed.class_names, (3, size, size), listed.fingerprint(size))
        self.files = [listed.files[row] for row in rows]

    def load(self, indices: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
        """See Images.

        Raises:
            CorruptFileError: a file that could be decoded when the set was made cannot be now.
        """
        size = self.shape[-1]
        with ThreadPoolExecutor(NUM_DECODERS, "decode") as pool:
            pictures = list(pool.map(lambda row: read_image(self.files[row], size), indices.tolist()))
        frames = torch.stack(pictures) if pictures else torch.empty(0, size, size, 3, dtype=torch.uint8)
        return pixels_from_bytes(frames.permute(0, 3, 1, 2).contiguous())


def read_image(path: Path, size: int) -> UInt8[Tensor, "size size 3"]:
    """The middle of an image file, upright and in RGB, its shorter side brought to `size` pixels.

    Raises:
        CorruptFileError: it cannot be decoded.
    """
    return read_fitted_image(path, size, size)


def read_fitted_image(path: Path, height: int, width: int) -> UInt8[Tensor, "{height} {width} 3"]:
    """An image file, upright and in RGB, brought to a size; what sticks out on two sides is cut off.

    Raises:
        CorruptFileError: it cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.draft("RGB", (width, height))  # a JPEG is decoded at a fraction of its size where that is enough
            upright = ImageOps.exif_transpose(image).convert("RGB")
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.array(fitted))
    except _BROKEN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise CorruptFileError(f"{path} cannot be decoded ({reason}); take it out of the folder") from error


def _is_broken(path: Path) -> bool:
    try:
        read_image(path, 1)
    except CorruptFileError:
        return True
    return False


def _images_below(folder: Path) -> list[Path]:
    found = []
    for where, _, names in os.walk(folder, followlinks=True):
        found += [Path(where, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    return found


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NUM_NAMED]) + (f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else "")
