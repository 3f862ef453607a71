"""Holes in images: how many, where, the same again, and what lies in them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.errors import ConfigError
from latentloom.keyframes import interpolate_harmonic, interpolate_idw

SHAPE = (3, 8, 8)


def keypatches(shape=SHAPE, **changes):
    return Keypatches(DriftConfig.model_validate({"dataset": "fake", "patch_size": 2, **changes}), shape)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(num, seed=0):
    return torch.rand(num, *SHAPE, generator=generator(seed)) * 2 - 1


@given(st.integers(1, 4), st.integers(1, 8), st.sampled_from(["geom", "linear", "doubling"]), st.integers(0, 2**31))
def test_an_image_has_as_many_given_patches_as_its_level_says(num_levels, min_given, schedule, seed):
    try:
        parts = keypatches(num_levels=num_levels, min_key_patches=min_given, mask_schedule=schedule)
    except ConfigError:
        assert num_levels > 1  # one level is always possible
        return
    holes = parts.draw_holes(20, generator(seed))
    counts = torch.tensor(parts.counts)
    assert holes.given.sum(dim=1).tolist() == counts[holes.level].tolist()
    assert parts.counts[-1] == min_given
    assert len(parts.counts) == num_levels


def test_every_level_is_drawn_unless_one_is_asked_for():
    parts = keypatches(num_levels=3)
    assert set(parts.draw_holes(100, generator()).level.tolist()) == {0, 1, 2}
    last = parts.draw_holes(10, generator(), level=2)
    assert set(last.given.sum(dim=1).tolist()) == {4}  # a quarter of 16
    assert set(last.level.tolist()) == {2}


def test_the_same_generator_draws_the_same_holes_and_another_one_others():
    parts = keypatches(noise_std=0.5)
    one, same, other = (parts.draw_holes(6, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.given, same.given)
    assert one.noise is not None
    assert same.noise is not None
    assert torch.equal(one.noise, same.noise)
    assert not torch.equal(one.given, other.given)


def test_noise_lies_on_missing_patches_alone_and_has_its_deviation():
    quiet, noisy = keypatches(), keypatches(noise_std=0.5)
    tokens = quiet.to_tokens(images(200))
    holes = noisy.draw_holes(200, generator(3))
    filled, disturbed = quiet.fill(tokens, quiet.draw_holes(200, generator(3))), noisy.fill(tokens, holes)
    assert torch.equal(disturbed[holes.given], tokens[holes.given])
    noise = (disturbed - filled)[~holes.given]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("mode", ["idw", "laplacian"])
def test_missing_patches_are_interpolated_as_the_settings_say(mode):
    parts = keypatches(interp_mode=mode, idw_power=1.5, sigma_feature=0.7, sigma_space=2.0, lambda_reg=0.01)
    tokens = parts.to_tokens(images(4))
    holes = parts.draw_holes(4, generator())
    if mode == "idw":
        expected = interpolate_idw(tokens, holes.given, (4, 4), 1.5)
    else:
        expected = interpolate_harmonic(
            tokens, holes.given, (4, 4), sigma_feature=0.7, sigma_space=2.0, lambda_reg=0.01, power=1.5
        )
    assert torch.equal(parts.fill(tokens, holes), expected)


def test_what_is_missing_is_never_looked_at():
    parts = keypatches(noise_std=0.1)
    tokens = parts.to_tokens(images(4))
    holes = parts.draw_holes(4, generator())
    spoiled = tokens.masked_fill(~holes.given.unsqueeze(-1), torch.nan)
    assert torch.equal(parts.fill(spoiled, holes), parts.fill(tokens, holes))


def test_rows_of_holes_are_those_of_their_images():
    parts = keypatches(noise_std=0.1, num_levels=2)
    tokens = parts.to_tokens(images(6))
    holes = parts.draw_holes(6, generator())
    assert torch.allclose(parts.fill(tokens, holes)[2:5], parts.fill(tokens[2:5], holes[2:5]), atol=1e-6)


def test_tokens_become_the_images_again():
    parts = keypatches()
    assert (parts.grid, parts.num_patches, parts.num_values) == ((4, 4), 16, 12)
    assert torch.equal(parts.to_images(parts.to_tokens(images(3))), images(3))


def test_patches_are_smaller_for_digits_when_no_size_is_given():
    assert Keypatches(DriftConfig.model_validate({}), (1, 8, 8)).patch == 2
    assert Keypatches(DriftConfig.model_validate({"dataset": "fake"}), SHAPE).patch == 4


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((3, 8, 8), {"patch_size": 3}, "patch_size = 3 does not divide 8x8"),
        ((3, 8, 6), {"patch_size": 4}, "does not divide 8x6"),
        ((3, 8, 8), {"min_key_patches": 16}, "16"),
        ((3, 8, 8), {"num_levels": 20}, "20"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(shape, settings, said):
    with pytest.raises(ConfigError, match=said) as raised:
        keypatches(shape, **settings)
    assert "\n" not in str(raised.value)
