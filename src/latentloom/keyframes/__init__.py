"""Pure functions on keyframes and keypatches: which are given, and what is interpolated between them."""

from latentloom.keyframes.harmonic import interpolate_harmonic
from latentloom.keyframes.interpolate import interpolate_idw
from latentloom.keyframes.measure import interpolation_errors
from latentloom.keyframes.patches import patchify, unpatchify
from latentloom.keyframes.schedule import level_counts, nested_masks

__all__ = [
    "interpolate_harmonic",
    "interpolate_idw",
    "interpolation_errors",
    "level_counts",
    "nested_masks",
    "patchify",
    "unpatchify",
]
