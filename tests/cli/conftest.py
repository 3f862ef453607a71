"""The tiny checkpoint of the tests of wan/, for the commands that take one."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("tiny_wan", Path(__file__).parents[1] / "wan" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

tiny_checkpoint = _MODULE.tiny_checkpoint
