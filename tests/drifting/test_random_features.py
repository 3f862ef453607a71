"""The fixed feature space of clips: it tells damaged clips from real ones, in any shape, on every machine alike."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentloom.drifting.clips.random_features import NUM_FEATURES, RandomFeatures
from latentloom.drifting.distances import frechet_distance, kernel_estimate
from latentloom.errors import ShapeError

PIXELS, LATENTS = (3, 9, 24, 24), (16, 17, 6, 6)


def moving_squares(num: int, shape: tuple[int, int, int, int], seed: int) -> Tensor:
    """Squares that move straight over an even background, in random colours."""
    channels, num_frames, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(num, channels, 1, 1, 1, generator=generator) * 2 - 1
    background = torch.rand(num, channels, 1, 1, 1, generator=generator) - 0.5
    start = torch.rand(num, 1, 2, generator=generator) * 0.5 + 0.25
    way = (torch.rand(num, 1, 2, generator=generator) - 0.5) * 0.8
    place = start + way * torch.linspace(0, 1, num_frames).view(1, -1, 1)
    inside = torch.ones(num, num_frames, height, width)
    for axis, size in enumerate((height, width)):
        cells = ((torch.arange(size) + 0.5) / size).view(1, 1, size)
        near = torch.sigmoid((0.18 - (cells - place[:, :, axis, None]).abs()) * size * 2)
        inside = inside * near.unsqueeze(3 - axis)
    return torch.lerp(background, colour, inside.unsqueeze(1))


def damaged(clips: Tensor) -> dict[str, Tensor]:
    num_frames = clips.shape[2]
    order = torch.randperm(num_frames, generator=torch.Generator().manual_seed(0))
    side = 5 if clips.shape[-1] > 6 else 3
    share = torch.linspace(0, 1, num_frames).view(1, 1, -1, 1, 1)
    return {
        "shuffled frames": clips[:, :, order],
        "crossfade": torch.lerp(clips[:, :, :1], clips[:, :, -1:], share),
        "blur": F.avg_pool3d(clips, (1, side, side), 1, (0, side // 2, side // 2), count_include_pad=False),
        "frozen": clips[:, :, :1].expand_as(clips),
    }


@pytest.mark.parametrize("shape", [PIXELS, LATENTS])
def test_every_damage_lies_well_above_the_distance_between_halves_of_real_clips(shape):
    real = moving_squares(512, shape, seed=0)
    space = RandomFeatures(shape[0]).fit_unit(moving_squares(128, shape, seed=1))
    one, other = space.features(real).chunk(2)
    halves, halves_fd = kernel_estimate(one, other), frechet_distance(one, other)
    assert halves.low < 0 < halves.high
    for name, clips in damaged(real[256:]).items():
        seen = space.features(clips)
        assert kernel_estimate(seen, other, paired=True).low > max(2 * halves.value, 0.1), name
        assert min(frechet_distance(seen, other), frechet_distance(seen, one)) > 1.5 * halves_fd, name


def test_milder_damage_is_nearer():
    real = moving_squares(64, LATENTS, seed=0)
    space = RandomFeatures(16).fit_unit(real)
    truth = space.features(real)
    frozen = damaged(real)["frozen"]
    distances = [frechet_distance(space.features(torch.lerp(real, frozen, share)), truth) for share in (0, 0.3, 0.6, 1)]
    assert distances[0] == pytest.approx(0, abs=1e-4)
    assert distances == sorted(distances)


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (16, 21, 6, 6), (1, 17, 48, 40)])
def test_features_of_any_shape_have_mean_0_and_variance_1(shape):
    clips = moving_squares(24, shape, seed=0) * 50 + 7  # neither scale nor offset of the data matter
    features = RandomFeatures(shape[0]).fit_unit(clips).features(clips)
    assert features.shape == (24, NUM_FEATURES)
    assert features.mean(dim=0).abs().max() < 1e-3
    assert features.var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-3)


def test_the_unit_makes_features_the_same_at_any_scale_of_the_data():
    clips = moving_squares(32, PIXELS, seed=0)
    plain = RandomFeatures(3).fit_unit(clips).features(clips)
    scaled = RandomFeatures(3).fit_unit(clips * 4 - 1).features(clips * 4 - 1)
    torch.testing.assert_close(scaled, plain, atol=1e-2, rtol=1e-2)


def test_weights_are_the_same_whatever_the_random_state():
    torch.manual_seed(1)
    first = RandomFeatures(3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = RandomFeatures(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.weights, second.weights, strict=True))
    # pinned, so that figures of other versions are not compared by accident
    assert first.weights[0].flatten()[:3].tolist() == pytest.approx([-0.16807, -0.17203, -0.03741], abs=1e-5)


def test_activations_keep_their_scale_through_the_stages():
    clips = torch.randn(8, 3, 9, 16, 16, generator=torch.Generator().manual_seed(0))
    pooled = RandomFeatures(3)._pooled(clips).square().split((8, 8, 12, 12, 12, 12), dim=1)
    for mean, deviation in zip(pooled[::2], pooled[1::2], strict=True):
        mean_square = (mean.square() + deviation.square()).mean()
        assert 0.3 < mean_square < 3


def test_clips_without_motion_can_be_the_real_ones():
    still = moving_squares(16, PIXELS, seed=0)[:, :, :1].expand(-1, -1, 9, -1, -1)
    space = RandomFeatures(3).fit_unit(still)
    assert space.features(moving_squares(4, PIXELS, seed=1)).isfinite().all()


@pytest.mark.parametrize("shape", [(4, 16, 9, 6, 6), (4, 3, 1, 6, 6)])
def test_other_clips_are_refused(shape):
    with pytest.raises(ShapeError, match=r"give \[N, 3, T, H, W\]"):
        RandomFeatures(3).features(torch.zeros(shape))
    with pytest.raises(ShapeError, match="1 clips to take the unit"):
        RandomFeatures(3).fit_unit(torch.zeros(1, 3, 4, 6, 6))
