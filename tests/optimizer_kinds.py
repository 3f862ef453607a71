"""The trainer's optimizers as parameters of a test; one of them needs a library that the set-up leaves out."""

from importlib.util import find_spec

import pytest

NEEDS_TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao, which the set-up leaves out")
KINDS = ("adamw", "AdamW8bitKahan", pytest.param("adamw8bit", marks=NEEDS_TORCHAO), "muon")
