"""Which tars a set of clips is in: a folder of them, or a brace pattern."""

import glob
from dataclasses import dataclass
from pathlib import Path

from braceexpand import braceexpand

from latentloom.drifting.clips.manifest import ShardManifest, common_manifest
from latentloom.errors import ConfigError, FileError, ShapeError

END_BYTES = 512  # a tar ends in zeros; one that does not was cut off


@dataclass(frozen=True)
class Shards:
    """The tars of a set of clips, in the order of their names, and what is known of them.

    Attributes:
        root: what was given: a folder or a brace pattern.
        paths: the tars.
        manifest: what the writer said; None for shards of other programs.
        channels: of a clip, where it is known what they must be.
    """

    root: str
    paths: tuple[Path, ...]
    manifest: ShardManifest | None
    channels: int | None

    @property
    def folders(self) -> tuple[Path, ...]:
        """The folders that the tars lie in."""
        return tuple(dict.fromkeys(path.parent for path in self.paths))


def find_shards(root: Path | str, channels: int | None = None) -> Shards:
    """The shards of a folder, or those that a pattern such as `shards/shard-{00000..00009}.tar` names.

    Args:
        root: folder of tars, one tar, or a pattern with braces or asterisks.
        channels: that clips must have.

    Raises:
        FileError: no such folder, no tars, or one of the pattern's that is missing.
        ShapeError: the manifest tells of another number of channels.
        ConfigError: shards of different kinds.
    """
    paths = _paths_of(root)
    manifest = common_manifest(list(dict.fromkeys(path.parent for path in paths)))
    if manifest is not None and channels is not None and manifest.shape[0] != channels:
        raise ShapeError(
            f"{root} holds clips of {manifest.shape[0]} channels ({manifest.space} space), not {channels}; "
            "give other shards, or the settings that fit them"
        )
    return Shards(str(root), tuple(paths), manifest, channels)


def ends_whole(path: Path) -> bool:
    """True if the tar was written to its end."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END_BYTES))
        return size >= END_BYTES and not any(file.read())


def _paths_of(root: Path | str) -> list[Path]:
    folder = Path(root)
    if folder.is_dir():
        # a killed writer leaves its unfinished shard under a hidden name
        paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
        if paths:
            return paths
        nested = sorted({path.parent.name for path in folder.glob("*/*.tar")})
        hint = (
            f"give one of its folders: {', '.join(nested)}"
            if nested
            else "make some with: latentloom drift make-shards"
        )
        raise FileError(f"{folder} holds no shards (*.tar); {hint}")
    if folder.is_file():
        return [folder]
    try:
        named = list(braceexpand(str(root)))
    except ValueError as error:
        raise ConfigError(f"{root} has braces that do not close; write shard-{{00000..00009}}.tar") from error
    paths = [Path(path) for name in named for path in (sorted(glob.glob(name)) if "*" in name else [name])]
    missing = [path for path in paths if not path.is_file()]
    if missing or not paths:
        which = f"{len(missing)} of its {len(paths)} shards are missing, such as {missing[0]}" if paths else "no shards"
        reason = which if len(named) > 1 or "*" in str(root) else "there is no such folder or file"
        raise FileError(
            f"{root}: {reason}; give a folder of tars or a pattern such as shards/shard-{{00000..00009}}.tar"
        )
    return paths
