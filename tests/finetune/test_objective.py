"""Noise levels have the distribution that was asked for; the loss weighs every clip alike."""

import math

import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st

from latentloom.errors import ConfigError
from latentloom.finetune.config import ModelConfig
from latentloom.finetune.objective import NoiseLevels, flow_matching_loss, noise_latents

QUANTILES = torch.linspace(0, 1, 41)


@st.composite
def distributions(draw: st.DrawFn) -> NoiseLevels:
    low, high = sorted((draw(st.integers(0, 99)), draw(st.integers(0, 99))))
    settings = draw(st.sampled_from(["logit_normal", "uniform"])), draw(st.floats(0.2, 3)), draw(st.floats(0.2, 10))
    try:
        return NoiseLevels(*settings, low=low / 100, high=(high + 1) / 100)
    except ConfigError:  # next to nothing of the distribution
        reject()


@given(distributions())
def test_levels_rise_with_the_quantile_inside_the_range(levels: NoiseLevels) -> None:
    values = levels.at(QUANTILES)
    assert (values.diff() >= 0).all()
    low, high = (torch.tensor(bound).float() for bound in (levels.low, levels.high))
    assert ((values >= low) & (values <= high)).all()
    torch.testing.assert_close(values[0], low, atol=1e-5, rtol=0)
    torch.testing.assert_close(values[-1], high, atol=1e-5, rtol=0)


@given(st.floats(0, 0.45), st.floats(0.55, 1))
def test_uniform_levels_are_even(low: float, high: float) -> None:
    values = NoiseLevels("uniform", low=low, high=high).at(QUANTILES)
    torch.testing.assert_close(values, low + (high - low) * QUANTILES)


def test_a_uniform_draw_is_the_level_itself() -> None:
    assert torch.equal(NoiseLevels("uniform").at(QUANTILES), QUANTILES)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1.0), (0.5, 1.0), (1.0, 5.0), (2.0, 3.0)])
def test_as_many_logit_normal_levels_lie_below_a_level_as_should(scale: float, shift: float) -> None:
    draws = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    drawn = NoiseLevels("logit_normal", scale, shift).at(draws)
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(1))
    base = torch.sigmoid(scale * normal)
    expected = shift * base / (1 + (shift - 1) * base)
    for level in (0.1, 0.3, 0.5, 0.7, 0.9, 0.98):
        assert abs((drawn < level).float().mean() - (expected < level).float().mean()) < 0.005


@given(st.floats(1.1, 10), st.sampled_from(["logit_normal", "uniform"]))
def test_a_shift_moves_the_median_as_esser_et_al_say(shift: float, method: str) -> None:
    median = float(NoiseLevels(method, shift=shift).at(torch.tensor(0.5)))
    assert median == pytest.approx(shift / (1 + shift), rel=1e-5)


@pytest.mark.parametrize("method", ["logit_normal", "uniform"])
def test_the_experts_share_one_distribution(method: str) -> None:
    """What both experts draw, each as often as the whole distribution enters its range, is what one model draws."""
    config = ModelConfig.model_validate({"timestep_sample_method": method, "shift": 3.0})
    whole = NoiseLevels.of(config).at(QUANTILES)
    high, low = NoiseLevels.of(config, 0.875, 1.0), NoiseLevels.of(config, 0.0, 0.875)
    assert high.at(QUANTILES).min() >= 0.875
    assert low.at(QUANTILES).max() <= 0.875
    base = 0.875 / (3 - 2 * 0.875)
    share_low = base if method == "uniform" else 0.5 * (1 + math.erf(math.log(base / (1 - base)) / math.sqrt(2)))
    inside = share_low > QUANTILES
    torch.testing.assert_close(low.at(QUANTILES[inside] / share_low), whole[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        high.at((QUANTILES[~inside] - share_low) / (1 - share_low)), whole[~inside], atol=1e-5, rtol=0
    )


def test_a_range_without_levels_is_refused() -> None:
    config = ModelConfig.model_validate({"min_t": 0.9})
    with pytest.raises(ConfigError, match=r"model\.min_t") as refusal:
        NoiseLevels.of(config, 0.0, 0.875)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.01), (0.99, 1.0)])
def test_a_range_that_is_never_drawn_is_refused(low: float, high: float) -> None:
    config = ModelConfig.model_validate({"min_t": low, "max_t": high, "sigmoid_scale": 0.5})
    with pytest.raises(ConfigError, match=r"sigmoid_scale = 0\.5.*timestep_sample_method") as refusal:
        NoiseLevels.of(config)
    assert "\n" not in str(refusal.value)
    uniform = NoiseLevels.of(config.model_copy(update={"timestep_sample_method": "uniform"}))
    torch.testing.assert_close(uniform.at(QUANTILES), low + (high - low) * QUANTILES)


@given(st.integers(1, 4), st.integers(2, 5), st.data())
def test_a_clean_first_frame_is_exact_at_timestep_zero_and_out_of_the_loss(
    batch: int, frames: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    latents, noise = (torch.randn(batch, 2, frames, 4, 6, generator=generator) for _ in range(2))
    levels = torch.rand(batch, generator=generator) * 0.9 + 0.05
    is_clean = torch.tensor(data.draw(st.lists(st.booleans(), min_size=batch, max_size=batch)))
    noisy, timestep, weight = noise_latents(latents, noise, levels, is_clean, (1, 2, 2), by_token=True)
    torch.testing.assert_close(weight.mean(dim=(1, 2, 3, 4)), torch.ones(batch))
    steps = timestep.view(batch, frames, 6)
    assert torch.equal(steps[:, 1:], (levels * 1000).view(-1, 1, 1).expand(batch, frames - 1, 6))
    for clip in range(batch):
        level = levels[clip]
        torch.testing.assert_close(noisy[clip, :, 1:], (1 - level) * latents[clip, :, 1:] + level * noise[clip, :, 1:])
        if is_clean[clip]:
            assert torch.equal(noisy[clip, :, 0], latents[clip, :, 0])
            assert not steps[clip, 0].any()
            assert float(weight[clip, 0, 0]) == 0
        else:
            assert torch.equal(steps[clip, 0], levels[clip].expand(6) * 1000)
            assert bool((weight[clip] == 1).all())


def test_one_timestep_per_clip_where_the_model_takes_no_more() -> None:
    latents = torch.zeros(2, 4, 3, 4, 4)
    levels = torch.tensor([0.25, 1.0])
    noisy, timestep, weight = noise_latents(
        latents, torch.ones_like(latents), levels, torch.tensor([False, False]), (1, 2, 2), by_token=False
    )
    assert torch.equal(timestep, torch.tensor([250.0, 1000.0]))
    assert torch.equal(noisy[0], torch.full_like(latents[0], 0.25))
    assert torch.equal(noisy[1], torch.ones_like(latents[1]))
    assert bool((weight == 1).all())


def test_the_loss_is_the_mean_square_over_what_is_not_given() -> None:
    target = torch.zeros(2, 4, 3, 2, 2)
    velocity = torch.ones_like(target)
    velocity[1, :, 0] = 100  # the given frame
    weight = torch.ones(2, 1, 3, 1, 1)
    weight[1, :, 0], weight[1, :, 1:] = 0, 1.5
    assert float(flow_matching_loss(velocity, target, weight)) == pytest.approx(1.0)
    half = flow_matching_loss(velocity.bfloat16(), target.bfloat16(), weight)
    assert half.dtype == torch.float32
