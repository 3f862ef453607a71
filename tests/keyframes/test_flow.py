"""Optical flow finds how far things move, and frames warped along it show them where they are."""

import pytest
import torch
from moving_blobs import missing_psnr, moving_blobs

from latentloom.keyframes import interpolate_frames
from latentloom.keyframes.flow import optical_flow


def texture(dx: float, dy: float, side: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Twelve soft spots in two channels, moved so many columns and rows."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 12, 1, 1, generator=generator, dtype=dtype) * side
    pixel = torch.arange(side, dtype=dtype)
    spots = (-((pixel - dx - x).square() + (pixel[:, None] - dy - y).square()) / (side / 4) ** 2).exp()
    return (spots * torch.randn(2, 12, 1, 1, generator=generator, dtype=dtype)).sum(dim=1).unsqueeze(0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(("dx", "dy"), [(3.0, 0.0), (-1.5, 2.25), (0.0, 0.0)])
def test_the_flow_of_a_moved_texture_is_its_motion(share, dx, dy):
    flow = optical_flow(texture(0, 0), texture(dx, dy), torch.tensor([share]))
    inner = flow[0, :, 8:-8, 8:-8]
    error = (inner - torch.tensor([dx, dy]).view(2, 1, 1)).abs()
    assert error.mean() < 0.06
    assert error.max() < 0.3


def test_a_moving_blob_is_filled_in_far_better_than_by_blending():
    clean, given = moving_blobs(8, distance=6.0), torch.zeros(8, 9, dtype=torch.bool)
    given[:, [0, 8]] = True
    psnr = {mode: missing_psnr(interpolate_frames(clean, given, mode), clean, given) for mode in ("linear", "flow")}
    assert psnr["linear"] < 29
    assert psnr["flow"] > psnr["linear"] + 15


def test_where_nothing_can_be_matched_the_frames_are_blended():
    clean = torch.rand(2, 3, 9, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    given = torch.zeros(2, 9, dtype=torch.bool)
    given[:, [0, 8]] = True
    psnr = {mode: missing_psnr(interpolate_frames(clean, given, mode), clean, given) for mode in ("linear", "flow")}
    assert psnr["flow"] > psnr["linear"] - 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (6, 6), (5, 17)])
def test_frames_of_any_size_and_flat_frames_have_a_flow(size):
    image = torch.rand(2, 16, *size, generator=torch.Generator().manual_seed(0))
    for first, second in ((image, image.flip(0)), (image, image), (image * 0, image * 0)):
        flow = optical_flow(first, second, torch.tensor([0.5, 0.25]))
        assert flow.shape == (2, 2, *size)
        assert flow.isfinite().all()
    assert not optical_flow(image, image, torch.tensor([0.5, 0.25])).any()


def test_float64_and_autocast_keep_precision():
    first, second = texture(0, 0, dtype=torch.float64), texture(2, 1, dtype=torch.float64)
    clip = torch.stack([first, first, second], dim=2)
    given = torch.tensor([[True, False, True]])
    exact = interpolate_frames(clip, given, "flow")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(interpolate_frames(clip, given, "flow"), exact)
    assert torch.allclose(interpolate_frames(clip.float(), given, "flow").double(), exact, atol=1e-3)


def test_gradients_reach_the_given_frames():
    clip = moving_blobs(1).requires_grad_()
    given = torch.zeros(1, 9, dtype=torch.bool)
    given[:, [0, 8]] = True
    interpolate_frames(clip, given, "flow").sum().backward()
    assert clip.grad is not None
    assert clip.grad.isfinite().all()
    by_frame = clip.grad.transpose(1, 2)
    assert by_frame[given].abs().sum() > 0
    assert not by_frame[~given].any()
