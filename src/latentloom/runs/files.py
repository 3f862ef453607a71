"""Small text files of a run, replaced as a whole."""

import os
import secrets
from pathlib import Path

from latentloom.errors import FileError


def replace_text(path: Path, text: str) -> None:
    """Write `text` to `path` in one step; a failure leaves what was there.

    Raises:
        FileError: the place cannot be written to.
    """
    # storage has the general form of this; runs and storage stand side by side and do not import each other
    temporary = path.with_name(f".{secrets.token_hex(6)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="\n")
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}; give a folder that can be written to") from error
    finally:
        temporary.unlink(missing_ok=True)
