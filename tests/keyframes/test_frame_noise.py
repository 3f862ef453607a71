"""Noise and a model's keyframes reach only the frames that they are meant for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.keyframes import add_frame_noise, frame_confidence, frame_distance, replace_keyframes
from latentloom.keyframes.frame_noise import NoiseMode

MODES: list[NoiseMode] = ["none", "dist", "gauss"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def clips(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Clips of any shape, also with fewer frames than channels, and a mask with a given frame in each."""
    batch, channels, frames = draw(st.integers(1, 3)), draw(st.integers(1, 8)), draw(st.integers(1, 9))
    rng = generator(draw(st.integers(0, 999)))
    values = torch.randn(batch, channels, frames, draw(st.integers(1, 4)), draw(st.integers(1, 4)), generator=rng)
    mask = torch.rand(batch, frames, generator=rng) < draw(st.floats(0, 1))
    mask[torch.arange(batch), torch.randint(frames, (batch,), generator=rng)] = True
    return values.to(draw(st.sampled_from(DTYPES))), mask


@given(clips=clips(), mode=st.sampled_from(MODES), sigma=st.floats(0, 10))
def test_noise_leaves_given_frames_bit_for_bit(clips, mode, sigma):
    values, mask = clips
    noisy = add_frame_noise(values, mask, mode, sigma, generator())
    assert noisy.dtype == values.dtype
    assert torch.equal(noisy.transpose(1, 2)[mask], values.transpose(1, 2)[mask])
    if mode == "none":
        assert torch.equal(noisy, values)


@given(clips=clips(), prob=st.floats(0, 1), seed=st.integers(0, 99))
def test_only_given_frames_that_a_model_has_made_are_replaced(clips, prob, seed):
    values, mask = clips
    has_student = torch.rand(mask.shape, generator=generator(seed)) < 0.5
    student = torch.randn(values.shape, generator=generator(seed)).masked_fill(
        ~has_student[:, None, :, None, None], float("nan")
    )
    mixed, replaced = replace_keyframes(values, mask, student, has_student, prob, generator(seed))
    assert mixed.dtype == values.dtype
    assert not (replaced & ~(mask & has_student)).any()
    assert torch.equal(mixed.transpose(1, 2)[~replaced], values.transpose(1, 2)[~replaced])
    assert torch.equal(mixed.transpose(1, 2)[replaced], student.to(values.dtype).transpose(1, 2)[replaced])


def test_keyframes_are_replaced_with_the_probability():
    values, mask = torch.zeros(200, 1, 20, 1, 1), torch.ones(200, 20, dtype=torch.bool)
    shares = [
        float(replace_keyframes(values, mask, values + 1, mask, prob, generator())[1].float().mean())
        for prob in (0.0, 0.3, 1.0)
    ]
    assert shares == pytest.approx([0, 0.3, 1], abs=0.04)


def test_dist_noise_grows_with_the_distance_to_its_stated_standard_deviation():
    mask = torch.zeros(4, 17, dtype=torch.bool)
    mask[:, [0, -1]] = True
    noise = add_frame_noise(torch.zeros(4, 16, 17, 16, 16), mask, "dist", 0.5, generator())
    deviation = noise.std(dim=(0, 1, 3, 4))
    expected = 0.5 * torch.tensor([*range(9), *reversed(range(8))]) / 8
    assert torch.allclose(deviation, expected, atol=0.01)
    assert noise.mean().abs() < 0.01


def test_gauss_noise_has_its_standard_deviation_in_every_missing_frame():
    mask = torch.zeros(4, 9, dtype=torch.bool)
    mask[:, [0, 1]] = True
    deviation = add_frame_noise(torch.zeros(4, 16, 9, 16, 16), mask, "gauss", 0.5, generator()).std(dim=(0, 1, 3, 4))
    assert torch.allclose(deviation, torch.tensor([0.0] * 2 + [0.5] * 7), atol=0.01)


def test_the_noise_of_a_frame_does_not_depend_on_which_others_are_given():
    values = torch.zeros(1, 2, 5, 3, 3)
    few, many = torch.zeros(2, 1, 5, dtype=torch.bool)
    few[:, 0] = many[:, 0] = many[:, 4] = True
    frames = [add_frame_noise(values, mask, "gauss", 1.0, generator())[:, :, 2] for mask in (few, many)]
    assert torch.equal(*frames)


@pytest.mark.parametrize("sigma", [-0.1, float("nan"), float("inf")])
def test_a_sigma_below_zero_or_without_end_is_refused(sigma):
    with pytest.raises(ConfigError, match=f"sigma = {sigma}; give a number of 0 or more"):
        add_frame_noise(torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 2, dtype=torch.bool), "dist", sigma, generator())


def test_distances_to_the_nearest_given_frame():
    mask = torch.tensor([[False, True, False, False, False, True, False], [True] + [False] * 6])
    assert frame_distance(mask).tolist() == [[1, 0, 1, 2, 1, 0, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_confidence_is_one_at_given_frames_and_halves_with_the_distance():
    mask = torch.tensor([[True, False, False, False, False]])
    assert frame_confidence(mask, half_distance=2.0)[0].tolist() == pytest.approx([1, 2**-0.5, 0.5, 2**-1.5, 0.25])
    assert frame_confidence(torch.ones_like(mask)).tolist() == [[1] * 5]


def test_a_replaced_keyframe_is_trusted_less_and_so_are_frames_near_it():
    mask = torch.tensor([[True, False, False, False, True]])
    replaced = torch.tensor([[True, False, False, False, False]])
    confidence = frame_confidence(mask, half_distance=1.0, replaced=replaced, replaced_confidence=0.25)
    # the frame beside the replaced one trusts the other end, three frames away, as much: 2^-3 is a quarter's half
    assert confidence[0].tolist() == pytest.approx([0.25, 0.125, 0.25, 0.5, 1])


@given(mask=clips().map(lambda pair: pair[1]), half_distance=st.floats(0.1, 100))
def test_confidence_lies_between_zero_and_one_and_falls_with_the_distance(mask, half_distance):
    confidence, distance = frame_confidence(mask, half_distance=half_distance), frame_distance(mask)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert torch.equal(confidence == 1, mask)
    nearer = distance.unsqueeze(2) < distance.unsqueeze(1)
    assert not (nearer & (confidence.unsqueeze(2) < confidence.unsqueeze(1))).any()


def test_settings_out_of_range_and_clips_without_a_given_frame_are_refused():
    mask = torch.tensor([[True, False], [False, False]])
    values = torch.zeros(2, 1, 2, 1, 1)
    with pytest.raises(ShapeError, match=r"clip 1 of a mask of frames \(2, 2\) has no given frame"):
        frame_distance(mask)
    with pytest.raises(ShapeError, match="clip 1"):
        add_frame_noise(values, mask, "none", 0.0, generator())
    with pytest.raises(ConfigError, match=r"prob = 1\.5; give a probability from 0 to 1"):
        replace_keyframes(values, ~mask, values, mask, 1.5, generator())
    with pytest.raises(ConfigError, match="half_distance = 0"):
        frame_confidence(~mask | mask, half_distance=0)
    with pytest.raises(ConfigError, match="replaced_confidence = 2"):
        frame_confidence(~mask | mask, replaced_confidence=2)
