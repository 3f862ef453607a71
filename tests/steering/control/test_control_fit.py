"""Fitting control vectors: planted directions are found, and nothing that should not matter does."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering import operations
from latentloom.steering.control.fit import (
    fit_control,
    mean_difference,
    principal_direction,
    separation,
    without_channel_mean,
)

PAIRS, WINDOWS, BLOCKS, DIM = 48, 2, 3, 32
SEEDS = st.integers(0, 10**6)
CENTRES = ("pair", "difference")


def planted(seed: int = 0, noise: float = 0.3, spread: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives that differ along one direction per window and block, by 1 on average; and the direction.

    spread: by how much that 1 varies from pair to pair.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(WINDOWS, BLOCKS, DIM, generator=generator), dim=-1)
    shape = (PAIRS, WINDOWS, BLOCKS, DIM)
    common = 3 * torch.randn(shape, generator=generator)
    amount = 1 + spread * torch.randn(PAIRS, 1, 1, 1, generator=generator)
    noises = [noise / DIM**0.5 * torch.randn(shape, generator=generator) for _ in range(2)]
    return common + amount * directions + noises[0], common + noises[1], directions


@given(seed=SEEDS)
def test_the_mean_difference_finds_a_planted_direction_and_its_scale(seed: int):
    positive, negative, directions = planted(seed)
    found = mean_difference(positive, negative)
    assert float(F.cosine_similarity(found, directions, dim=-1).min()) > 0.95
    assert found.norm(dim=-1).mean() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("centre", CENTRES)
@given(seed=SEEDS)
def test_the_first_component_finds_a_planted_direction_and_its_scale(centre, seed: int):
    positive, negative, directions = planted(seed)
    found = principal_direction(positive, negative, centre)
    assert float(F.cosine_similarity(found.directions, directions, dim=-1).min()) > 0.95
    assert found.directions.norm(dim=-1).mean() == pytest.approx(1, abs=0.3)
    assert 0.3 < float(found.explained.min()) < 1


@pytest.mark.parametrize("centre", CENTRES)
@given(seed=SEEDS)
def test_swapping_the_sides_turns_every_direction_round(centre, seed: int):
    positive, negative, _ = planted(seed)
    there, back = principal_direction(positive, negative, centre), principal_direction(negative, positive, centre)
    assert torch.allclose(there.directions, -back.directions, atol=1e-5)
    assert torch.allclose(there.explained, back.explained)
    along = (mean_difference(positive, negative) * there.directions).sum(dim=-1)
    assert torch.all(along > 0)


@given(seed=SEEDS)
def test_the_order_of_the_pairs_does_not_matter(seed: int):
    positive, negative, directions = planted(seed)
    order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(seed))
    shuffled = positive[order], negative[order]
    assert torch.allclose(mean_difference(*shuffled), mean_difference(positive, negative), atol=1e-5)
    for centre in CENTRES:
        expected = principal_direction(positive, negative, centre).directions
        assert torch.allclose(principal_direction(*shuffled, centre).directions, expected, atol=1e-4)
    for there, back in zip(separation(*shuffled, directions), separation(positive, negative, directions), strict=True):
        assert torch.allclose(there, back, atol=1e-4)


def test_equal_input_gives_equal_bits():
    positive, negative, _ = planted()
    first, second = (principal_direction(positive, negative).directions for _ in range(2))
    assert torch.equal(first, second)


def test_centring_chooses_between_what_pairs_share_and_what_they_differ_in():
    shared, varying = torch.eye(DIM)[0], torch.eye(DIM)[1]
    amounts = torch.linspace(-1, 1, PAIRS)[:, None, None, None]
    negative = torch.zeros(PAIRS, 1, 1, DIM)
    positive = 2 * shared + amounts * varying + negative
    pair = principal_direction(positive, negative, "pair")
    assert torch.allclose(pair.directions[0, 0], 2 * shared, atol=1e-5)
    # the differences vary along a direction that their mean has no part in
    difference = principal_direction(positive, negative, "difference")
    assert difference.directions.norm() < 1e-5
    assert difference.explained.item() == pytest.approx(1, abs=1e-5)


def test_the_explained_share_is_that_of_the_squared_differences():
    first, second = torch.eye(DIM)[0], torch.eye(DIM)[1]
    positive = torch.stack([3 * first, 3 * first, second, second])[:, None, None]
    found = principal_direction(positive, torch.zeros_like(positive), "pair")
    assert found.explained.item() == pytest.approx(18 / 20)
    assert torch.allclose(found.directions[0, 0], 1.5 * first, atol=1e-6)


def test_more_pairs_than_channels_give_what_fewer_channels_would():
    positive, negative, _ = planted()
    narrow_positive, narrow_negative = positive[..., :8], negative[..., :8]
    wide = [F.pad(side, (0, 200)) for side in (narrow_positive, narrow_negative)]
    expected = principal_direction(narrow_positive, narrow_negative)
    found = principal_direction(wide[0], wide[1])
    assert torch.allclose(found.directions[..., :8], expected.directions, atol=1e-5)
    assert torch.allclose(found.explained, expected.explained, atol=1e-5)


def test_pairs_that_all_differ_in_the_same_have_no_component_of_their_own():
    negative = torch.randn(PAIRS, 1, 1, DIM)
    same = negative + torch.randn(DIM)
    assert torch.equal(principal_direction(negative, negative).directions, torch.zeros(1, 1, DIM))
    found = principal_direction(same, negative, "difference")
    assert torch.equal(found.directions, torch.zeros(1, 1, DIM))
    assert found.explained.item() == 0


def test_one_pair_has_a_difference_but_nothing_to_compare_it_with():
    positive, negative, _ = planted()
    one = principal_direction(positive[:1], negative[:1])
    assert torch.allclose(one.directions, (positive - negative)[0], atol=1e-5)
    with pytest.raises(ConfigError, match="two pairs or more"):
        principal_direction(positive[:1], negative[:1], "difference")


def test_a_constant_over_the_channels_is_removed_and_its_share_told():
    pattern = torch.tensor([1.0, -1.0, 1.0, -1.0])
    rows = torch.stack([pattern, pattern + 1, torch.ones(4), torch.zeros(4)])[None]
    kept, removed = without_channel_mean(rows)
    assert torch.allclose(kept[0], torch.stack([pattern, pattern, torch.zeros(4), torch.zeros(4)]), atol=1e-6)
    assert removed[0].tolist() == pytest.approx([0, math.sqrt(0.5), 1, 0])


@given(seed=SEEDS, constant=st.floats(-50, 50))
def test_what_is_removed_has_no_effect_past_a_layer_norm(seed: int, constant: float):
    generator = torch.Generator().manual_seed(seed)
    tokens, direction = torch.randn(5, DIM, generator=generator), torch.randn(1, 1, DIM, generator=generator)
    kept, _ = without_channel_mean(direction + constant)
    whole, rest = (F.layer_norm(tokens + each[0, 0], (DIM,)) for each in (direction + constant, kept))
    assert torch.allclose(whole, rest, atol=1e-4)


def test_separation_counts_pairs_ranks_and_standard_deviations():
    along = torch.eye(4)[0]
    higher, lower = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 2.0, 6.0])
    positive, negative = ((side[:, None] * along)[:, None, None] for side in (higher, lower))
    found = separation(positive, negative, 7 * along[None, None])
    assert found.pairs.item() == pytest.approx(2 / 3)
    assert found.auc.item() == pytest.approx(6 / 9)
    assert found.cohens_d.item() == pytest.approx(1 / math.sqrt((1 + 7) / 2))
    turned = separation(positive, negative, -along[None, None])
    assert turned.pairs.item() == pytest.approx(1 / 3)
    assert turned.auc.item() == pytest.approx(3 / 9)


def test_separation_is_at_chance_for_a_direction_that_says_nothing():
    positive, negative, _ = planted()
    found = separation(positive, negative, torch.zeros(WINDOWS, BLOCKS, DIM))
    for measure, chance in zip(found, (0.5, 0.5, 0.0), strict=True):
        assert torch.equal(measure, torch.full((WINDOWS, BLOCKS), chance))
    assert separation(positive[:1], negative[:1], torch.ones(WINDOWS, BLOCKS, DIM)).cohens_d.isnan().all()


@given(seed=SEEDS)
def test_ablating_a_fitted_direction_twice_is_ablating_it_once(seed: int):
    positive, negative, _ = planted(seed)
    direction = mean_difference(positive, negative)[0, 0]
    once = operations.ablate(positive[:, 0], direction, torch.tensor(1.0))
    assert torch.allclose(operations.ablate(once, direction, torch.tensor(1.0)), once, atol=1e-5)
    assert float((once @ direction).abs().max()) < 1e-4


def test_a_fit_says_what_it_was_fitted_on():
    positive, negative, _ = planted()
    fitted = fit_control(
        positive, negative, site="context", model="micro", windows=((0.0, 0.5), (0.5, 1.0)), provenance={"seeds": [0]}
    )
    assert fitted.control.provenance == {"seeds": [0], "method": "mean", "num_pairs": PAIRS}
    assert torch.equal(fitted.control.directions, mean_difference(positive, negative))
    assert (fitted.control.site, fitted.control.windows) == ("context", ((0.0, 0.5), (0.5, 1.0)))
    assert fitted.explained is None
    assert fitted.channel_mean is None
    assert float(fitted.separation.pairs.min()) > 0.9


@pytest.mark.parametrize("method", ["mean", "pca_pair", "pca_difference"])
def test_a_fit_on_hidden_states_keeps_no_constant(method):
    positive, negative, _ = planted()
    fitted = fit_control(
        positive + 2, negative, site="hidden_states", model="micro", method=method, windows=((0.0, 0.5), (0.5, 1.0))
    )
    assert float(fitted.control.directions.mean(dim=-1).abs().max()) < 1e-5
    assert fitted.channel_mean is not None
    assert (float(fitted.channel_mean.min()) > 0.9) == (method != "pca_difference")
    assert (fitted.explained is None) == (method == "mean")


def test_activations_in_half_precision_are_fitted_in_float32():
    positive, negative, _ = planted()
    found = mean_difference(positive.bfloat16(), negative.bfloat16())
    assert found.dtype == torch.float32
    assert torch.allclose(found, mean_difference(positive, negative), atol=0.05)


def test_bad_activations_are_refused_in_one_line():
    positive, negative, _ = planted()
    settings = {"site": "context", "model": "micro", "windows": ((0.0, 0.5), (0.5, 1.0))}
    with pytest.raises(ShapeError, match="give both as"):
        mean_difference(positive[:0], negative[:0])
    with pytest.raises(ConfigError, match="NaN"):
        mean_difference(positive * math.nan, negative)
    with pytest.raises(ConfigError, match="use mean, pca_pair"):
        fit_control(positive, negative, method="umap", **settings)
