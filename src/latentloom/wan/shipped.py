"""The checkpoint that comes with the package."""

from pathlib import Path


def micro_wan_weights() -> Path:
    """The folder of MicroWan's weights, in diffusers layout: what is used where no checkpoint is named."""
    return Path(__file__).resolve().parents[1] / "micro" / "weights"
