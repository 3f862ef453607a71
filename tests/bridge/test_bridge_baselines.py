"""What a bridge has to beat: each baseline by another way to compute it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from latentloom.bridge.baselines import derangement, fit_ridge, nearest_rows
from latentloom.errors import ShapeError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("num_rows", "num_features"), [(60, 7), (12, 30)], ids=["tall", "wide"])
def test_ridge_equals_that_of_scikit_learn(num_rows, num_features):
    features = torch.randn(num_rows, num_features, generator=_generator()) * 3 + 1
    features[:, 0] = 2.5  # a feature that never changes
    vectors = torch.randn(num_rows, 4, generator=_generator(1)) + 5
    unseen = torch.randn(9, num_features, generator=_generator(2))
    ridge = fit_ridge(features, vectors, _generator(), penalties=[0.1])
    scaler = StandardScaler().fit(features.double().numpy())
    model = SklearnRidge(alpha=0.1 * num_rows).fit(scaler.transform(features.double().numpy()), vectors.double())
    np.testing.assert_allclose(ridge.predict(unseen), model.predict(scaler.transform(unseen.double())), atol=1e-4)


def test_ridge_takes_the_penalty_that_predicts_texts_it_was_not_fitted_to():
    features = torch.randn(80, 40, generator=_generator())
    noise = torch.randn(80, 3, generator=_generator(1))
    signal = features[:, :3] * 10
    assert fit_ridge(features, noise, _generator()).penalty > fit_ridge(features, signal, _generator()).penalty
    held_out = torch.randn(50, 40, generator=_generator(3))
    found = fit_ridge(features, signal, _generator()).predict(held_out)
    torch.testing.assert_close(found, held_out[:, :3] * 10, atol=0.2, rtol=0.05)


def test_ridge_needs_pairs():
    with pytest.raises(ShapeError, match="1 features and 1 vectors"):
        fit_ridge(torch.ones(1, 2), torch.ones(1, 2), _generator())


@given(st.integers(2, 40), st.integers(0, 1000))
def test_no_text_keeps_its_vector_and_every_vector_is_used(num_rows, seed):
    order = derangement(num_rows, _generator(seed))
    assert sorted(order.tolist()) == list(range(num_rows))
    assert (order != torch.arange(num_rows)).all()


def test_a_single_text_cannot_get_another_ones_vector():
    with pytest.raises(ShapeError, match="at least two"):
        derangement(1, _generator())


@pytest.mark.parametrize("size", [1, 8, 50])
def test_the_nearest_training_vector_is_by_angle_in_parts_or_at_once(size):
    training = torch.randn(50, 6, generator=_generator())
    vectors = training[[7, 49, 0]] * 0.01
    assert nearest_rows(vectors, training.split(size)).tolist() == [7, 49, 0]


def test_the_first_of_equally_near_ones_is_taken():
    assert nearest_rows(torch.ones(1, 3), torch.ones(5, 3).split(2)).tolist() == [0]


def test_an_empty_training_set_has_no_nearest():
    with pytest.raises(ShapeError, match="at least one"):
        nearest_rows(torch.ones(1, 3), [])
