"""MicroWan, loaded once for all tests of steering; not to be changed."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from latentloom.wan.pipeline import WanPipeline


@pytest.fixture(scope="session")
def micro_wan() -> "WanPipeline":
    """The shipped model in float32."""
    from latentloom.micro import default_checkpoint
    from latentloom.wan.pipeline import WanPipeline

    return WanPipeline.load(default_checkpoint(), device="cpu")
