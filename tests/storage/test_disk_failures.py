"""A disk that is full says so in one line, whichever library was writing."""

import errno
import os
import subprocess
import sys
import textwrap

import pytest

from latentloom.errors import FileError
from latentloom.storage import atomic_write, replace_folder

PROGRAM = """
    import resource, signal, sys, torch
    from pathlib import Path
    from safetensors.torch import save_file
    from latentloom.errors import FileError
    from latentloom.storage import atomic_write

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    target = Path(sys.argv[1]) / "weights.safetensors"
    try:
        with atomic_write(target) as temporary:
            save_file({"weight": torch.zeros(100_000)}, temporary)
    except FileError as error:
        print(error)
    print(sorted(path.name for path in target.parent.iterdir()))
"""


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path):
    (tmp_path / "kept.txt").write_text("before")
    with (
        pytest.raises(FileError, match=r"cannot write .*kept.txt: No space left on device; free some space"),
        atomic_write(tmp_path / "kept.txt"),
    ):
        full()
    assert (tmp_path / "kept.txt").read_text() == "before"
    with pytest.raises(FileError, match="No space left"), replace_folder(tmp_path / "folder"):
        full()
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_error_that_is_not_the_disks_passes_through(tmp_path):
    with pytest.raises(OSError, match="Permission denied"), atomic_write(tmp_path / "file"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    with pytest.raises(ValueError, match="os error 28"), atomic_write(tmp_path / "file"):
        raise ValueError("os error 28")


def test_safetensors_own_error_is_understood(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    printed = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "cannot write" in printed
    assert "File too large" in printed
    assert printed.splitlines()[-1] == "[]"
