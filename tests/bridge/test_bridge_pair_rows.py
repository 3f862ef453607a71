"""What a row must hold, and how several vectors become one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.bridge.pair_rows import MAX_VECTORS, BadRowError, require_text, sentence_vector


def unit_vectors(num: int, dim: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(num, dim)) + 0.5
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def reason(array: np.ndarray) -> str:
    with pytest.raises(BadRowError) as error:
        sentence_vector(array)
    return error.value.reason


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_single_vector_is_taken_as_it_is(dtype):
    vector = np.array([0.1, -3.0, 70.0], dtype=dtype)
    assert sentence_vector(vector).dtype == np.float32
    assert np.array_equal(sentence_vector(vector), vector.astype(np.float32))
    assert np.array_equal(sentence_vector(vector[None]), vector.astype(np.float32))


@given(num=st.integers(2, 6), dim=st.integers(2, 40), seed=st.integers(0, 1000))
def test_the_average_of_unit_vectors_is_a_unit_vector_in_the_direction_of_their_mean(num, dim, seed):
    vectors = unit_vectors(num, dim, seed)
    found, mean = sentence_vector(vectors), vectors.mean(axis=0)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)
    assert found @ mean == pytest.approx(np.linalg.norm(mean), rel=1e-5)


def test_the_average_has_the_mean_length_of_the_vectors():
    vectors = np.array([[3, 0], [0, 5]], dtype=np.float32)
    assert np.linalg.norm(sentence_vector(vectors)) == pytest.approx(4, rel=1e-6)


@given(seed=st.integers(0, 1000), num_padding=st.integers(1, 4))
def test_padding_and_broken_vectors_do_not_count(seed, num_padding):
    vectors = unit_vectors(3, 8, seed)
    broken = np.full((1, 8), np.nan, np.float32)
    padded = np.concatenate([vectors[:1], np.zeros((num_padding, 8), np.float32), broken, vectors[1:]])
    assert np.array_equal(sentence_vector(padded), sentence_vector(vectors))
    alone = np.concatenate([np.zeros((num_padding, 8), np.float32), vectors[:1]])
    assert np.array_equal(sentence_vector(alone), vectors[0])


def test_vectors_that_are_none_are_told_by_their_kind():
    good = np.array([1, 2, 3], dtype=np.float32)
    assert reason(np.array([1, np.nan, 3], dtype=np.float32)) == "NaN or infinite"
    assert reason(np.array([1, np.inf, 3], dtype=np.float32)) == "NaN or infinite"
    assert reason(np.array([1, 1e300, 3], dtype=np.float64)) == "NaN or infinite"
    assert reason(np.zeros(3, np.float32)) == "zero vector"
    assert reason(np.stack([good, -good])) == "zero vector"
    assert reason(np.array(1.0, dtype=np.float32)) == "wrong shape"
    assert reason(good[None, None]) == "wrong shape"
    assert reason(np.zeros((0, 3), np.float32)) == "wrong shape"
    assert reason(np.ones((MAX_VECTORS + 1, 1), np.float32)) == "wrong shape"
    for other in (
        np.array([1, 2], dtype=np.int64),
        np.array(["1", "2"]),
        np.array([True]),
        np.array([1], dtype=np.complex64),
    ):
        assert reason(other) == "wrong dtype"


def test_texts_that_are_none_are_told_by_their_kind():
    assert require_text(" kept as it is ") == " kept as it is "
    for text, expected in ((None, "no text"), (7, "no text"), (" \n", "empty text"), ("a\ud800", "not Unicode")):
        with pytest.raises(BadRowError) as error:
            require_text(text)
        assert error.value.reason == expected
