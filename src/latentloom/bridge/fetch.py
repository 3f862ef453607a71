"""Putting a backbone's files on this machine; the one part of the bridge that uses the network."""

import logging
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from latentloom.bridge.config import ModelConfig
from latentloom.bridge.gguf_conversion import converted_gguf, is_converted
from latentloom.bridge.pretrained_folder import (
    UNWANTED_FILES,
    cached_snapshot,
    given_files,
    require_copy_of,
    wanted_files,
)
from latentloom.bridge.weight_files import CONFIG, MARKER, read_marker, require_complete, write_marker
from latentloom.errors import FileError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchedBackbone:
    """Where a backbone lies now.

    Args:
        folder: that `load_backbone` reads.
        done: what was done for it: downloaded, converted, or nothing, as it was complete.
        commit: of the repository on the hub; None where it comes from elsewhere, or was copied by hand.
        num_bytes: all of its files.
    """

    folder: Path
    done: str
    commit: str | None
    num_bytes: int


def fetch_backbone(config: ModelConfig) -> FetchedBackbone:
    """Have the files of a backbone on this machine, whole; without the network where they already are.

    Of processes that ask at the same time, also on several machines with one file system, one downloads. All files
    are of one commit. Every shard of the index is checked, and a marker written last.

    Args:
        config: the model, its revision and `pretrained_local_dir`, where its files go; the hub's cache when None.

    Raises:
        FileError: the model or revision does not exist, cannot be reached or written, or the folder holds another.
        CorruptFileError: what was downloaded is not whole.
    """
    given = given_files(config.pretrained_model_name_or_path)
    if given is not None:
        return _prepare(given)
    if config.pretrained_local_dir is None:
        return _fetch_into_cache(config)
    return _fetch_into_folder(config, config.pretrained_local_dir)


def _prepare(given: Path) -> FetchedBackbone:
    """A folder has all that is needed; a GGUF file is converted."""
    if given.is_dir():
        require_complete(given)
        return _fetched(given, "complete", None)
    done = "complete" if is_converted(given) else "converted"
    return _fetched(converted_gguf(given), done, None)


def _fetch_into_cache(config: ModelConfig) -> FetchedBackbone:
    try:
        folder, done = cached_snapshot(config), "complete"
    except FileError:
        _commit(config)  # says what is wrong where the download would take whatever lies in the cache
        # by the revision's own name, or the cache would not know later which commit it was
        folder, done = Path(_download(config, config.revision, None)), "downloaded"
    require_complete(folder)
    return _fetched(folder, done, folder.name)


def _fetch_into_folder(config: ModelConfig, folder: Path) -> FetchedBackbone:
    if _is_whole(config, folder):
        return _fetched(folder, "complete", _marked_commit(folder))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock")
        if not _is_free(lock):
            _log.warning("another process is fetching %s; waiting for it", folder)
        with lock:
            if _is_whole(config, folder):
                return _fetched(folder, "complete", _marked_commit(folder))
            (folder / MARKER).unlink(missing_ok=True)
            commit = _commit(config)
            _download(config, commit, folder)
            require_complete(folder)
            facts = {"repo": config.pretrained_model_name_or_path, "revision": config.revision, "commit": commit}
            write_marker(folder, facts)
    except OSError as error:
        raise FileError(f"cannot write {folder}: {error.strerror}; give another model.pretrained_local_dir") from error
    return _fetched(folder, "downloaded", commit)


def _is_whole(config: ModelConfig, folder: Path) -> bool:
    """Whether nothing is left to do: a marked copy, or one that was not downloaded here but put there by hand.

    Raises:
        FileError: the folder is marked as another model.
    """
    if not (folder / CONFIG).is_file():
        return False
    marked = (folder / MARKER).is_file()
    if not marked and (folder / ".cache" / "huggingface").is_dir():  # a download that did not end
        return False
    try:
        require_complete(folder)
        read_marker(folder)
    except FileError as error:
        _log.warning("%s; fetching what is missing", error)
        return False
    require_copy_of(config, folder)
    return True


def _commit(config: ModelConfig) -> str:
    """The commit that the revision is now, so that all files are of it though a branch may move meanwhile."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(config.pretrained_model_name_or_path, revision=config.revision, timeout=30).sha
    except Exception as error:  # of the hub, of its client and of the system: what they share is that it did not work
        raise _unreachable(config, error) from error
    if found is None:
        raise FileError(f"{config.pretrained_model_name_or_path}: the hub names no commit; give model.revision")
    return found


def _download(config: ModelConfig, revision: str | None, folder: Path | None) -> str:
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            config.pretrained_model_name_or_path,
            revision=revision,
            local_dir=folder,
            allow_patterns=wanted_files(config),
            ignore_patterns=UNWANTED_FILES,
        )
    except Exception as error:  # as above
        raise _unreachable(config, error) from error


def _unreachable(config: ModelConfig, error: Exception) -> FileError:
    at = f" at {config.revision}" if config.revision else ""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    reason = ". ".join(lines[:2])  # the hub's first line is a number
    return FileError(
        f"cannot fetch {config.pretrained_model_name_or_path}{at}: {reason}; check the name, the revision and the "
        "network, then run it again: what is there is not downloaded twice"
    )


def _marked_commit(folder: Path) -> str | None:
    return (read_marker(folder) or {}).get("commit")


def _is_free(lock: FileLock) -> bool:
    from filelock import Timeout

    try:
        with lock.acquire(timeout=0):
            return True
    except Timeout:
        return False


def _fetched(folder: Path, done: str, commit: str | None) -> FetchedBackbone:
    num_bytes = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return FetchedBackbone(folder, done, commit, num_bytes)
