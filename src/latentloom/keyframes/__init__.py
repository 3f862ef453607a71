"""Pure functions on keyframes and keypatches: which are given, and what is interpolated between them."""

from latentloom.keyframes.frame_interpolation import adjacent_targets, interpolate_frames
from latentloom.keyframes.frame_motion import moving_share
from latentloom.keyframes.frame_noise import add_frame_noise, frame_confidence, frame_distance, replace_keyframes
from latentloom.keyframes.frame_schedule import frame_levels, nested_frame_masks
from latentloom.keyframes.harmonic import interpolate_harmonic
from latentloom.keyframes.interpolate import interpolate_idw
from latentloom.keyframes.measure import interpolation_errors
from latentloom.keyframes.patches import patchify, unpatchify
from latentloom.keyframes.schedule import level_counts, nested_masks
from latentloom.keyframes.sinkhorn import SinkhornWarper, fit_warper

__all__ = [
    "SinkhornWarper",
    "add_frame_noise",
    "adjacent_targets",
    "fit_warper",
    "frame_confidence",
    "frame_distance",
    "frame_levels",
    "interpolate_frames",
    "interpolate_harmonic",
    "interpolate_idw",
    "interpolation_errors",
    "level_counts",
    "moving_share",
    "nested_frame_masks",
    "nested_masks",
    "patchify",
    "replace_keyframes",
    "unpatchify",
]
