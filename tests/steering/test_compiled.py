"""A compiled transformer is steered like one that is not, also when it was compiled and used before."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compiled_steering.py")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")


@pytest.mark.parametrize(
    ("way", "backend"),
    [
        ("blocks", "eager"),
        pytest.param("in_place", "eager", marks=pytest.mark.slow),
        pytest.param("wrapped", "eager", marks=pytest.mark.slow),
        pytest.param("blocks", "inductor", marks=[pytest.mark.slow, needs_compiler]),
        pytest.param("wrapped", "inductor", marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_compiled_and_not_compiled_agree_before_during_and_after(way, backend):
    done = subprocess.run([sys.executable, PROGRAM, way, backend], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
