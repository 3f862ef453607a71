"""Missing frames are filled from given ones, which stay as they are."""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import SinkhornWarper, adjacent_targets, interpolate_frames, nested_frame_masks
from latentloom.keyframes.frame_gaps import check_frames
from latentloom.keyframes.frame_interpolation import FrameMode

MODES: tuple[FrameMode, ...] = get_args(FrameMode)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def fill(values: torch.Tensor, mask: torch.Tensor, mode: FrameMode) -> torch.Tensor:
    return interpolate_frames(values, mask, mode, warper_for(values, mode))


def warper_for(values: torch.Tensor, mode: FrameMode) -> SinkhornWarper | None:
    return SinkhornWarper(values.shape[1]).to(values.dtype) if mode == "learned" else None


@st.composite
def clips(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of any shape, also with fewer frames than channels, and a mask with a given frame in each."""
    batch, channels, frames = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 9))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    size = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    values = torch.randn(batch, channels, frames, *size, generator=generator)
    mask = torch.rand(batch, frames, generator=generator) < draw(st.floats(0, 1))
    mask[torch.arange(batch), torch.randint(frames, (batch,), generator=generator)] = True
    return values.to(draw(st.sampled_from(DTYPES))), mask


def moving(power: int, num_frames: int = 17) -> torch.Tensor:
    """Clips whose values are polynomials in time."""
    generator = torch.Generator().manual_seed(power)
    time = torch.linspace(-1, 1, num_frames, dtype=torch.float64)
    weights = torch.randn(2, 3, power + 1, 4, 5, generator=generator, dtype=torch.float64)
    return torch.einsum("bcphw,pt->bcthw", weights, torch.stack([time**p for p in range(power + 1)]))


def masks(*rows: list[int], num_frames: int = 17) -> torch.Tensor:
    mask = torch.zeros(len(rows), num_frames, dtype=torch.bool)
    for clip, frames in enumerate(rows):
        mask[clip, frames] = True
    return mask


@pytest.mark.parametrize("mode", MODES)
@given(clips=clips())
def test_given_frames_come_back_bit_for_bit_and_others_are_never_read(mode, clips):
    values, mask = clips
    filled = fill(values, mask, mode)
    assert filled.dtype == values.dtype
    assert filled.isfinite().all()
    assert torch.equal(filled.transpose(1, 2)[mask], values.transpose(1, 2)[mask])
    holed = values.masked_fill(~mask[:, None, :, None, None], float("nan"))
    assert torch.equal(fill(holed, mask, mode), filled)


@pytest.mark.parametrize("mode", MODES)
@given(clips=clips())
def test_beyond_the_first_and_the_last_given_frame_that_one_is_held(mode, clips):
    values, mask = clips
    filled = fill(values, mask, mode)
    for clip, source, row in zip(filled, values, mask, strict=True):
        first, last = row.nonzero().flatten()[[0, -1]].tolist()
        assert torch.equal(clip[:, :first], source[:, [first]].expand(-1, first, -1, -1))
        assert torch.equal(clip[:, last:], source[:, [last]].expand(-1, clip.shape[1] - last, -1, -1))


@pytest.mark.parametrize("mode", MODES)
def test_each_clip_is_filled_by_its_own_mask_as_it_would_be_alone(mode):
    values, mask = moving(3).float(), masks([0, 3, 11, 16], [2, 16])
    together = fill(values, mask, mode)
    alone = torch.cat([fill(values[[i]], mask[[i]], mode) for i in range(2)])
    assert torch.allclose(together, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["linear", "smooth"])
def test_half_precision_is_computed_in_float32(mode):
    values, mask = moving(3).bfloat16(), masks([0, 3, 11, 16], [2, 16])
    exact = interpolate_frames(values.float(), mask, mode)
    assert torch.equal(interpolate_frames(values, mask, mode), exact.bfloat16())


@pytest.mark.parametrize(
    ("mode", "power", "rows"),
    [
        ("linear", 1, ([0, 3, 4, 16], [0, 16])),
        ("smooth", 1, ([0, 3, 4, 16], [0, 16])),
        ("smooth", 2, ([0, 3, 4, 16], [0, 9, 16])),
    ],
)
def test_polynomials_in_time_are_met(mode, power, rows):
    values = moving(power)
    assert torch.allclose(interpolate_frames(values, masks(*rows), mode), values, atol=1e-12)


def test_smooth_is_exact_on_cubics_where_slopes_are_and_near_elsewhere():
    values, mask = moving(3, 33), masks([0, 8, 16, 24, 32], [0, 8, 16, 24, 32], num_frames=33)
    error = (interpolate_frames(values, mask, "smooth") - values).abs()
    linear = (interpolate_frames(values, mask, "linear") - values).abs()
    assert error[:, :, [12, 20]].max() < 1e-12  # the middle, where the errors of both slopes cancel
    assert error.mean() < linear.mean() / 3


def test_smooth_has_no_kink_and_linear_has():
    time = torch.linspace(0, 6, 49, dtype=torch.float64)
    values = time.sin().view(1, 1, -1, 1, 1)
    mask = masks(list(range(0, 49, 8)), num_frames=49)
    bends = {}
    for mode in ("linear", "smooth"):
        filled = interpolate_frames(values, mask, mode)
        bends[mode] = float(filled.diff(n=2, dim=2).abs().max())
        bends[mode, "error"] = float((filled - values).square().mean())
    assert bends["smooth"] < bends["linear"] / 2
    assert bends["smooth", "error"] < bends["linear", "error"] / 10


@pytest.mark.parametrize("mode", ["linear", "smooth"])
def test_gradients_reach_given_frames_only(mode):
    values, mask = moving(2).requires_grad_(), masks([0, 4, 16], [1, 9])
    interpolate_frames(values, mask, mode).sum().backward()
    assert values.grad is not None
    by_frame = values.grad.transpose(1, 2)
    assert by_frame[mask].abs().sum() > 0
    assert not by_frame[~mask].any()


@pytest.mark.parametrize("mode", MODES)
def test_the_target_of_a_level_is_the_reconstruction_one_level_denser(mode):
    values = moving(3).float().repeat(2, 1, 1, 1, 1)
    levels = nested_frame_masks(17, 3, 4, torch.Generator().manual_seed(0), schedule="random")
    targets = adjacent_targets(values, levels, torch.tensor([0, 1, 2, 0]), mode, warper_for(values, mode))
    assert torch.equal(targets[[0, 3]], values[[0, 3]])
    expected = fill(values[1:3], torch.stack([levels[0, 1], levels[1, 2]]), mode)
    assert torch.allclose(targets[1:3], expected, atol=1e-4)
    assert torch.equal(targets[1:3].transpose(1, 2)[levels[2, 1:3]], values[1:3].transpose(1, 2)[levels[2, 1:3]])


@pytest.mark.parametrize(
    ("shape", "mask"),
    [((2, 3, 9, 4, 4), (2, 3)), ((2, 9, 3, 4, 4), (2, 9)), ((9, 3, 4, 4), (9, 3)), ((1, 3, 9, 4, 4), (2, 9))],
)
def test_clips_and_masks_that_do_not_fit_are_refused_and_never_transposed(shape, mask):
    with pytest.raises(ShapeError, match=rf"clips \({shape[0]}, .* and a mask of frames \({mask[0]}, {mask[1]}\)"):
        check_frames(torch.zeros(shape), torch.ones(mask, dtype=torch.bool))


@pytest.mark.parametrize("mode", MODES)
def test_a_clip_without_a_given_frame_is_refused(mode):
    with pytest.raises(ShapeError, match=r"clip 1 of a mask of frames \(2, 17\) has no given frame"):
        fill(moving(1), masks([0], []), mode)


def test_a_warper_belongs_to_the_learned_mode_alone():
    with pytest.raises(ConfigError, match="mode 'learned' without a warper; give one for 'learned' alone"):
        interpolate_frames(moving(1), masks([0], [0]), "learned")
    with pytest.raises(ConfigError, match="mode 'flow' with a warper"):
        interpolate_frames(moving(1), masks([0], [0]), "flow", SinkhornWarper())


def test_levels_that_the_masks_lack_are_refused():
    values, levels = moving(1), masks([0, 8, 16], [0, 16]).repeat(2, 1, 1)
    with pytest.raises(ShapeError, match=r"levels \[0, 2\] of masks \(2, 2, 17\); give 0 to 1"):
        adjacent_targets(values, levels, torch.tensor([0, 2]), "linear")


def test_the_function_itself_refuses_wrong_shapes_where_annotations_are_not_enforced():
    code = (
        "import torch; from latentloom.keyframes import interpolate_frames as fill\n"
        "try: fill(torch.zeros(2, 9, 3, 4, 4), torch.ones(2, 9, dtype=torch.bool), 'linear')\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith(
        "ShapeError clips (2, 9, 3, 4, 4) and a mask of frames (2, 9) do not fit; give [B, C, T, H, W]"
    )
