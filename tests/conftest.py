"""Shapes in annotations are enforced in every test; threads, examples and randomness are fixed."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# before anything imports latentloom; the tower lets an integer be given where a float is asked for, as PEP 484 does
install_import_hook("latentloom", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
torch.set_num_threads(1)
settings.register_profile("latentloom", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("latentloom")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of documents and data beside the repository; tests that need it are skipped without it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} with the documents and their data")
    return folder
