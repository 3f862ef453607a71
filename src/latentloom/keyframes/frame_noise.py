"""What makes interpolated clips harder: noise on missing frames, and keyframes that a model has made."""

import math
from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes.frame_gaps import check_frames, check_given, nearest_given

NoiseMode = Literal["none", "dist", "gauss"]


def add_frame_noise(
    filled: Float[Tensor, "B C T H W"],
    given: Bool[Tensor, "B T"],
    mode: NoiseMode,
    sigma: float,
    generator: torch.Generator,
) -> Float[Tensor, "B C T H W"]:
    """Add normal noise to the missing frames; given ones come back bit for bit.

    Args:
        filled: clips whose missing frames are filled in.
        given: true where a frame is given.
        mode: "none"; "gauss", with the standard deviation `sigma` in every missing frame; "dist", where it is
            `sigma` times the distance to the nearest given frame over (T - 1) / 2, and so `sigma` in the middle
            between two given ends.
        sigma: 0 or more, in the clips' units.
        generator: decides the draw, whatever the mask, and the device where it is made.

    Raises:
        ShapeError: the shapes do not fit together, or a clip has no given frame.
        ConfigError: a sigma below 0 or without end.
    """
    check_frames(filled, given)
    if not 0 <= sigma < math.inf:
        raise ConfigError(f"sigma = {sigma}; give a number of 0 or more")
    match mode:
        case "none":
            return filled.clone()
        case "dist":
            deviation = frame_distance(given) * (2 * sigma / max(given.shape[1] - 1, 1))
        case "gauss":
            deviation = torch.full(given.shape, sigma, device=given.device)
        case _:
            assert_never(mode)
    dtype = torch.promote_types(filled.dtype, torch.float32)
    noise = torch.randn(filled.shape, generator=generator, device=generator.device, dtype=dtype).to(filled.device)
    noisy = (filled.to(dtype) + noise * _as_clip(deviation.to(dtype))).to(filled.dtype)
    return torch.where(_as_clip(given), filled, noisy)


def frame_distance(given: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """How many frames each frame is away from the nearest given one; 0 for that one itself.

    Args:
        given: true where a frame is given.

    Raises:
        ShapeError: not [B, T], or a clip has no given frame.
    """
    check_given(given)
    left, right = nearest_given(given)
    number = torch.arange(given.shape[1], device=given.device)
    return torch.minimum((number - left).abs(), (number - right).abs()).float()


def frame_confidence(
    given: Bool[Tensor, "B T"],
    *,
    half_distance: float = 4.0,
    replaced: Bool[Tensor, "B T"] | None = None,
    replaced_confidence: float = 0.5,
) -> Float[Tensor, "B T"]:
    """How far each frame is to be trusted, from 0 to 1: 1 at given frames, halved every so many frames from them.

    Args:
        given: true where a frame is given.
        half_distance: frames to the nearest given one at which confidence is a half; above 0.
        replaced: true where a given frame is a model's proposal, as `replace_keyframes` says; None for nowhere.
        replaced_confidence: of such frames, 0 to 1. Frames near them have as much less.

    Raises:
        ShapeError: masks of different shapes or not [B, T], or a clip has no given frame.
        ConfigError: a number out of range.
    """
    check_given(given)
    if replaced is not None and replaced.shape != given.shape:
        raise ShapeError(f"masks {tuple(given.shape)} and {tuple(replaced.shape)}; give both as [B, T]")
    if not 0 < half_distance < math.inf or not 0 <= replaced_confidence <= 1:
        raise ConfigError(
            f"half_distance = {half_distance}, replaced_confidence = {replaced_confidence}; "
            "give a number above 0, and one from 0 to 1"
        )
    trust = torch.ones(given.shape, device=given.device)
    if replaced is not None:
        trust = trust.masked_fill(replaced, replaced_confidence)
    number = torch.arange(given.shape[1], device=given.device)
    by_side = [
        trust.gather(1, side) * torch.exp2((number - side).abs() / -half_distance) for side in nearest_given(given)
    ]
    return torch.maximum(*by_side)


def replace_keyframes(
    values: Float[Tensor, "B C T H W"],
    given: Bool[Tensor, "B T"],
    student: Float[Tensor, "B C T H W"],
    has_student: Bool[Tensor, "B T"],
    prob: float,
    generator: torch.Generator,
) -> tuple[Float[Tensor, "B C T H W"], Bool[Tensor, "B T"]]:
    """Put a model's keyframes in the place of some given ones (scheduled sampling); all other frames stay bit for bit.

    Args:
        values: the clips.
        given: true where a frame is given.
        student: the model's frames; read only where they are taken.
        has_student: true where the model has made a frame.
        prob: of replacing a given frame that the model has made, each drawn on its own.
        generator: decides the draw, on its device.

    Returns:
        The clips, and true where a frame was replaced.

    Raises:
        ShapeError: the shapes do not fit together, or a clip has no given frame.
        ConfigError: a prob outside of 0 to 1.
    """
    check_frames(values, given)
    if student.shape != values.shape or has_student.shape != given.shape:
        raise ShapeError(
            f"clips {tuple(values.shape)} with mask {tuple(given.shape)}, and a model's {tuple(student.shape)} with "
            f"{tuple(has_student.shape)}; give both in the same shapes"
        )
    if not 0 <= prob <= 1:
        raise ConfigError(f"prob = {prob}; give a probability from 0 to 1")
    drawn = torch.rand(given.shape, generator=generator, device=generator.device).to(given.device) < prob
    replaced = given & has_student & drawn
    return torch.where(_as_clip(replaced), student.to(values.dtype), values), replaced


def _as_clip(by_frame: Tensor) -> Tensor:
    return by_frame[:, None, :, None, None]
