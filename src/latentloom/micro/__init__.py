"""MicroWan: a few megabytes of weights for the classes of Wan 2.2, trained here on a captioned world."""

from pathlib import Path

from latentloom.wan.shipped import micro_wan_weights


def default_checkpoint() -> Path:
    """The folder of the shipped MicroWan weights, in diffusers layout; the default of every `--ckpt-root`."""
    return micro_wan_weights()


__all__ = ["default_checkpoint"]
