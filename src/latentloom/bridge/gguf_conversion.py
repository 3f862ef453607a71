"""GGUF files, rewritten once as a folder that loads at once."""

import hashlib
import io
import logging
import os
import shutil
from contextlib import redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from latentloom.bridge.weight_files import WEIGHTS, read_marker, write_marker
from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.storage import replace_folder

_log = logging.getLogger(__name__)

#: Raised when what is written changes, so that folders of before are not read.
_FORM = 1
_BLOCKS, _BLOCK_BYTES = 64, 4096


def converted_gguf(file: Path) -> Path:
    """The folder that holds a GGUF file's model and tokenizer as safetensors; made on the first call.

    It lies in `cache_folder()`. Processes that ask at the same time wait for one of them. Weights are kept in float32:
    values of 4 bits with a float16 scale and offset are rounded by float16.

    Raises:
        FileError: no such file, or the cache cannot be written.
        CorruptFileError: the file is no GGUF, is cut short or holds a model that transformers does not know.
    """
    folder = cache_folder() / "gguf" / f"{_sampled_digest(file)}-{_FORM}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(
            f"cannot write {folder.parent}: {error.strerror}; set LATENTLOOM_CACHE to a folder that can be written to"
        ) from error
    with FileLock(folder.parent / f"{folder.name}.lock"):
        if not _is_whole(folder):
            for left_over in folder.parent.glob(f".{folder.name}.*"):  # of a conversion that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            _log.info("rewriting %s as safetensors in %s", file, folder)
            with replace_folder(folder) as temporary:
                _convert(file, temporary)
    return folder


def is_converted(file: Path) -> bool:
    """Whether `converted_gguf` has its folder already, and whole."""
    return _is_whole(cache_folder() / "gguf" / f"{_sampled_digest(file)}-{_FORM}")


def cache_folder() -> Path:
    """Where models rewritten by LatentLoom lie: $LATENTLOOM_CACHE, else `latentloom` in the user's cache folder."""
    given = os.environ.get("LATENTLOOM_CACHE")
    if given:
        return Path(given).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(user_cache) if user_cache else Path.home() / ".cache") / "latentloom"


def _is_whole(folder: Path) -> bool:
    """Whether every file is there as it was written; what is not is made again, not mended by hand."""
    try:
        return read_marker(folder) is not None
    except FileError:
        return False


def _convert(file: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _require_gguf(file)
    given = {"gguf_file": file.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with redirect_stderr(io.StringIO()):  # its bars have no switch
            sizes = _head_size(file)
            model: Any = AutoModelForCausalLM.from_pretrained(file.parent, **given, **sizes, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    # Readers of a damaged file fail wherever they trip over it, with errors of any kind.
    except Exception as cause:
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        raise CorruptFileError(
            f"{file} cannot be read: {reason}; give a GGUF file of a causal language model"
        ) from cause
    # save_pretrained of the model refuses what was dequantised, though nothing of it is quantised any more
    del model.config.quantization_config
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_marker(folder, {"gguf": file.name})


def _head_size(file: Path) -> dict[str, int]:
    """Channels of an attention head where the file states them, which transformers leaves at a class's default."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    stated = next((field for name, field in fields.items() if name.endswith(".attention.key_length")), None)
    return {} if stated is None else {"head_dim": int(stated.contents())}


def _require_gguf(file: Path) -> None:
    if not _has_gguf_start(file):
        raise CorruptFileError(f"{file} is no GGUF file; give one, or the folder of a model")
    if find_spec("gguf") is None:
        raise ConfigError(f"reading {file} needs the package gguf; run pip install gguf")


def _has_gguf_start(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"GGUF"


def _sampled_digest(file: Path) -> str:
    """16 hex digits of a file's size, its start and blocks spread over it; reading all of it would take seconds."""
    try:
        size = file.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with file.open("rb") as opened:
            digest.update(opened.read(1 << 20))
            for place in range(_BLOCKS):
                opened.seek(size * place // _BLOCKS)
                digest.update(opened.read(_BLOCK_BYTES))
            opened.seek(max(0, size - _BLOCK_BYTES))
            digest.update(opened.read())
    except OSError as error:
        raise FileError(f"cannot read {file}: {error.strerror}; give a GGUF file") from error
    return digest.hexdigest()[:16]
