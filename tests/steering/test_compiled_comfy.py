"""Compiled models of ComfyUI's hosts are steered like others, whether they were compiled before or after."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compiled_comfy.py")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["blocks", "whole"])
@pytest.mark.parametrize("host", ["native", "wrapper"])
def test_compiled_models_are_steered_like_others_and_plain_ones_are_not(host, way, when):
    done = subprocess.run([sys.executable, PROGRAM, host, way, when], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
