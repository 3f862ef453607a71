"""Tokens of two frames are matched, frames between are warped along, and the matching can be learned."""

import pytest
import torch
from moving_blobs import missing_psnr, moving_blobs

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import SinkhornWarper, fit_warper, interpolate_frames
from latentloom.keyframes.sinkhorn import token_grid


def ends(num: int, frames: int = 9) -> torch.Tensor:
    given = torch.zeros(num, frames, dtype=torch.bool)
    given[:, [0, -1]] = True
    return given


def test_a_moving_blob_is_filled_in_far_better_than_by_blending():
    clean, given = moving_blobs(8), ends(8)
    psnr = {mode: missing_psnr(interpolate_frames(clean, given, mode), clean, given) for mode in ("linear", "sinkhorn")}
    assert psnr["linear"] < 25
    assert psnr["sinkhorn"] > psnr["linear"] + 5


def test_a_warper_with_parameters_starts_as_the_one_without():
    clean, given = moving_blobs(2), ends(2)
    assert list(SinkhornWarper().parameters()) == []
    assert torch.allclose(SinkhornWarper(3)(clean, given), SinkhornWarper()(clean, given), atol=1e-5)


@pytest.mark.parametrize("channels", [None, 3])
def test_clips_and_warpers_in_bfloat16_are_computed_in_float32(channels):
    clean, given = moving_blobs(2).bfloat16(), ends(2)
    exact = SinkhornWarper(channels)(clean.float(), given)
    filled = SinkhornWarper(channels).to(torch.bfloat16)(clean, given)
    assert filled.dtype == torch.bfloat16
    assert torch.equal(filled.transpose(1, 2)[given], clean.transpose(1, 2)[given])
    if channels is None:
        assert torch.equal(filled, exact.bfloat16())
    assert torch.allclose(filled.float(), exact, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SinkhornWarper(channels)(clean.float(), given), exact)


def test_a_fitted_warper_beats_the_unfitted_one_on_clips_that_it_has_not_seen():
    def draw(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        seed = int(torch.randint(1000, (1,), generator=generator))
        return moving_blobs(4, frames=5, side=12, distance=6.0, seed=seed), ends(4, 5)

    clean, given = moving_blobs(64, frames=5, side=12, distance=6.0, seed=12345), ends(64, 5)
    warper = SinkhornWarper(3)
    errors = fit_warper(warper, draw, 40, 0.03, torch.Generator().manual_seed(0))
    assert len(errors) == 40
    filled = interpolate_frames(clean, given, "learned", warper).detach()
    before = missing_psnr(interpolate_frames(clean, given, "sinkhorn"), clean, given)
    assert missing_psnr(filled, clean, given) > before + 0.5
    copy = SinkhornWarper(3)
    copy.load_state_dict(warper.state_dict())
    assert torch.equal(copy(clean, given), filled)
    again = SinkhornWarper(3)
    assert fit_warper(again, draw, 2, 0.03, torch.Generator().manual_seed(0))[0] == errors[0]


def test_equal_frames_stay_as_they_are_and_unmatched_ones_are_blended():
    given = ends(2)
    still = moving_blobs(2)[:, :, :1].expand(-1, -1, 9, -1, -1)
    assert torch.allclose(interpolate_frames(still, given, "sinkhorn"), still, atol=0.02)
    noise = torch.rand(2, 3, 9, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    psnr = {mode: missing_psnr(interpolate_frames(noise, given, mode), noise, given) for mode in ("linear", "sinkhorn")}
    assert psnr["sinkhorn"] > psnr["linear"] - 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (6, 6), (17, 40)])
def test_frames_of_any_size_and_flat_frames_are_filled(size):
    values = torch.rand(2, 4, 3, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    warper = SinkhornWarper(4)
    for clip in (values, values * 0):
        filled = warper(clip, ends(2, 3))
        assert filled.isfinite().all()
        filled.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in warper.parameters())
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_large_frames_are_matched_by_cells():
    assert token_grid((6, 6)) == (6, 6)
    assert token_grid((16, 16)) == (16, 16)
    assert token_grid((48, 48)) == (16, 16)
    assert token_grid((60, 104)) == (12, 20)


def test_other_channels_and_a_fit_of_nothing_are_refused():
    clean, given = moving_blobs(1), ends(1)
    with pytest.raises(ShapeError, match=r"clips \(1, 3, 9, 24, 24\) for a warper of 16 channels"):
        SinkhornWarper(16)(clean, given)
    with pytest.raises(ShapeError, match="clip 0 of a mask of frames"):
        SinkhornWarper()(clean, given & False)
    with pytest.raises(ConfigError, match="channels = 0; give 1 or more"):
        SinkhornWarper(0)
    with pytest.raises(ConfigError, match=r"nothing to fit; give SinkhornWarper\(channels\)"):
        fit_warper(SinkhornWarper(), lambda _: (clean, given), 1, 0.1, torch.Generator())
    with pytest.raises(ConfigError, match=r"steps = 0, lr = 0\.1"):
        fit_warper(SinkhornWarper(3), lambda _: (clean, given), 0, 0.1, torch.Generator())
