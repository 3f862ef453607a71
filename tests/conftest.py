"""Shapes in annotations are enforced in every test; threads, examples and randomness are fixed."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

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


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder in MicroWan's layout with random weights; not to be changed."""
    from tiny_checkpoint import save_tiny_checkpoint  # diffusers takes seconds to import, and most tests do without

    root = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_tiny_checkpoint(root)
    return root


@pytest.fixture(scope="session")
def tiny_low_expert() -> "WanTransformer3DModel":
    """A second transformer for the tiny checkpoint, with weights of its own."""
    from tiny_checkpoint import tiny_transformer

    torch.manual_seed(1)
    return tiny_transformer()
