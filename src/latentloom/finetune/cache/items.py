"""What a folder of media holds: each image and video with its content's digest, its size and its caption."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from datasets import Features, Value

from latentloom.errors import CorruptFileError
from latentloom.finetune.cache.ranks import Ranks
from latentloom.finetune.cache.shards import read_table, write_table
from latentloom.finetune.media import is_media, look_at
from latentloom.runs import track

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One image or video.

    Args:
        file: its name in the folder.
        digest: SHA-256 of its bytes; empty where they could not be read.
        fps: frames per second at which `num_frames` was counted.
        width, height: as shown.
        num_frames: 1 for an image.
        caption: as the text file has it, without the line's end; empty without one.
        has_caption: whether there is a text file.
        problem: why the item cannot be used; empty if it can.
    """

    file: str
    digest: str
    fps: float
    width: float
    height: float
    num_frames: int
    caption: str
    has_caption: bool
    problem: str


ITEMS = Features(
    {
        field.name: Value({str: "string", float: "float64", int: "int64", bool: "bool"}[type_])
        for field, type_ in ((field, Item.__annotations__[field.name]) for field in fields(Item))
    }
)


def scan_folder(folder: Path, fps: float, known: Sequence[Item], ranks: Ranks) -> list[Item]:
    """Every image and video of a folder, by name; each process looks at its share of them.

    Args:
        folder: sub-folders are not searched, and names that start with a dot are left out.
        fps: the model's frames per second.
        known: what an earlier scan found; a file of the same content is not looked into again.
        ranks: who shares the work.
    """
    files = ranks.first(lambda: sorted(path.name for path in folder.iterdir() if _is_listed(path)))
    by_digest = {item.digest: item for item in known if item.digest and not item.problem and item.fps == fps}

    def look_at_share() -> list[Item]:
        mine = ranks.share(files)
        return [_look(folder, file, fps, by_digest) for file in (track(mine, "reading media") if mine else ())]

    found = {item.file: item for items in ranks.all(look_at_share) for item in items}
    return [found[file] for file in files]


def read_items(path: Path) -> list[Item] | None:
    """What `write_items` wrote; None if there is nothing that can be read."""
    if not path.is_file():
        return None
    rows = read_table(path, ITEMS)
    return None if rows is None else [Item(**row) for row in rows]


def write_items(path: Path, items: Sequence[Item]) -> None:
    """Keep what a scan found.

    Raises:
        FileError: it cannot be written.
    """
    write_table(path, ITEMS, [asdict(item) for item in items])


def _is_listed(path: Path) -> bool:
    return is_media(path) and not path.name.startswith(".") and path.is_file()


def _look(folder: Path, file: str, fps: float, known: Mapping[str, Item]) -> Item:
    path = folder / file
    digest, caption, width, height, num_frames, problem = "", None, 0.0, 0.0, 0, ""
    try:
        caption = _read_caption(path.with_suffix(".txt"))
        with path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        facts = known.get(digest) or look_at(path, fps)
        width, height, num_frames = facts.width, facts.height, facts.num_frames
    except CorruptFileError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename} cannot be read ({error.strerror}); make it readable"
    if problem:
        logger.warning("skipped: %s", problem)
    return Item(file, digest, fps, width, height, num_frames, caption or "", caption is not None, problem)


def _read_caption(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is not UTF-8 (byte {error.start + 1}); save the caption as UTF-8") from error
