"""Scores by hand, by the libraries they come from, and by what must hold for any text or vector."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sacrebleu.metrics.bleu import BLEU

from latentloom.bridge.model import TextLosses
from latentloom.bridge.scores import Scorer, cosine, exact_match, ranks, squared_error, token_f1
from latentloom.errors import ShapeError

words = st.lists(
    st.sampled_from(["cat", "dog", "sits", "runs", "red", "house", "on", "under", "Big"]), min_size=4, max_size=9
)
sentences = words.map(" ".join)


def test_token_f1_is_the_harmonic_mean_of_shared_words():
    # shared: cat, sat; 3 words against 4: 2 * 2 / 7
    assert token_f1("a cat sat down.", "The Cat sat there, quietly") == pytest.approx(4 / 7)
    assert token_f1("red red red", "red house") == pytest.approx(2 / 5)  # a word counts as often as it is there
    assert token_f1("dog", "cat") == 0.0


def test_texts_without_words_equal_each_other_alone():
    assert token_f1("", "the ...") == 1.0
    assert token_f1("", "cat") == 0.0
    assert exact_match("", "!")


def test_exact_match_minds_the_order_but_not_case_punctuation_or_articles():
    assert exact_match("The red house.", "a RED house")
    assert not exact_match("house red", "red house")


@given(sentences, sentences)
def test_f1_is_symmetric_and_within_0_and_1(one, other):
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == 1.0


@given(st.lists(sentences, min_size=1, max_size=5))
def test_identical_texts_have_bleu_100(texts):
    found = Scorer(len(texts), num_resamples=20).bleu(texts, texts)
    assert (found.value, found.low, found.high) == pytest.approx((100, 100, 100))


@given(st.lists(st.tuples(sentences, sentences), min_size=1, max_size=6))
def test_bleu_is_that_of_sacrebleu_and_inside_its_interval(pairs):
    texts, references = [text for text, _ in pairs], [reference for _, reference in pairs]
    found = Scorer(len(pairs), num_resamples=30).bleu(texts, references)
    assert found.value == pytest.approx(BLEU().corpus_score(texts, [references]).score, abs=1e-9)
    assert found.low <= found.value <= found.high


def test_bleu_needs_a_reference_for_each_text():
    with pytest.raises(ShapeError, match="2 texts and 1 references"):
        Scorer(2).bleu(["a", "b"], ["a"])


def test_long_texts_weigh_more_in_cross_entropy_and_accuracy():
    losses = TextLosses(torch.tensor([1.0, 4.0]), torch.tensor([9, 1]), torch.tensor([6, 0]))
    scorer = Scorer(2)
    assert scorer.cross_entropy(losses).value == pytest.approx(1.3)
    assert scorer.accuracy(losses).value == pytest.approx(0.6)
    assert scorer.cross_entropy(losses).high == pytest.approx(4.0)  # a quarter of the resamples hold the worse one only


@given(arrays("float32", (7, 3), elements=st.floats(-10, 10, width=32)))
def test_the_predictions_own_vectors_explain_everything_and_the_mean_nothing(values):
    true = torch.from_numpy(values)
    mean = true.mean(0) + 1
    scorer = Scorer(len(true))
    assert scorer.r2(true, true, mean).value == 1.0
    assert scorer.r2(mean.expand_as(true), true, mean).value == 0.0


def test_r2_of_half_the_way_is_three_quarters():
    true, mean = torch.randn(20, 4), torch.ones(4)
    found = Scorer(20).r2((true + mean) / 2, true, mean)
    assert (found.value, found.low, found.high) == pytest.approx((0.75, 0.75, 0.75))


def test_mse_is_per_channel():
    assert squared_error(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])).tolist() == [5.0]


def test_a_centred_cosine_leaves_out_what_all_vectors_share():
    mean = torch.tensor([100.0, 0.0])
    a, b = torch.tensor([[101.0, 0.0], [100.0, 1.0]]), torch.tensor([[99.0, 0.0], [100.0, 2.0]])
    assert cosine(a, b).min() > 0.99
    assert cosine(a, b, mean).tolist() == pytest.approx([-1.0, 1.0])
    assert cosine(mean[None], b[:1], mean).tolist() == [0.0]  # the mean vector points nowhere


@given(st.permutations(range(6)))
def test_a_permuted_identity_is_found_where_a_row_stays(order):
    eye = torch.eye(6)
    found = ranks(eye[list(order)], eye)
    assert (found == 0).tolist() == [place == row for place, row in enumerate(order)]


def test_equal_predictions_are_no_hits():
    true = torch.eye(5)
    assert (ranks(torch.ones(5, 5), true) == 0).sum() == 0


def test_ranks_count_the_nearer_ones_whatever_the_vectors_lengths(monkeypatch):
    true = torch.tensor([[1.0, 0.0], [0.0, 5.0], [30.0, 30.0]])
    predicted = torch.tensor([[1.0, 0.2], [2.0, 1.0], [1.0, 1.0]])
    assert ranks(predicted, true).tolist() == [0, 2, 0]
    monkeypatch.setattr("latentloom.bridge.scores._ROWS_AT_ONCE", 2)
    assert ranks(predicted, true).tolist() == [0, 2, 0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(0, 100))
def test_an_interval_holds_its_mean_and_does_not_leave_the_values(values, seed):
    found = Scorer(len(values), seed, num_resamples=50).mean(torch.tensor(values, dtype=torch.float64))
    assert found.low <= found.value <= found.high
    assert min(values) - 1e-9 <= found.low
    assert found.high <= max(values) + 1e-9
