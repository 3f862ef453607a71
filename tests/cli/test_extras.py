"""A library that is not installed is said in one line, before anything is imported or read."""

import pytest

from latentloom.cli.extras import EXTRAS, require_extra
from latentloom.errors import ConfigError


def test_installed_libraries_are_no_matter():
    require_extra("finetune")
    require_extra("finetune", "peft")


def test_a_missing_library_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(EXTRAS, "finetune", ("torch", "no_such_library"))
    with pytest.raises(ConfigError, match=r"needs no_such_library; .*latentloom\[finetune\]"):
        require_extra("finetune")
