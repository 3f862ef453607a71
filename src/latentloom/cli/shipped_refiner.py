"""The refiner of clips that comes with the package."""

from pathlib import Path


def shipped_refiner() -> Path:
    """The file of MicroWan's own refiner: clips of 17 frames of its world, latents of each frame, with prompts."""
    return Path(__file__).resolve().parents[1] / "micro" / "refiners" / "world.safetensors"
