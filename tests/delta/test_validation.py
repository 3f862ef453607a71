"""Which adapter is chosen: the constraints at their borders, and scores that are those of the applied adapter."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.metrics import cosine_distances, retrieval_ranks
from latentloom.delta.model import DeltaConfig, EmbeddingDelta
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import pool
from latentloom.delta.split import Split
from latentloom.delta.train import Candidate, Training
from latentloom.delta.validation import Score, Validation, adjusted_pools
from latentloom.tensors import TextEmbeddings

DIM = 24
BEFORE = Score(cosine=0.5, recall_at_1=0.5, drift=0.0)
seeds = st.integers(0, 2**31)
lengths = st.lists(st.integers(0, 6), min_size=2, max_size=6)
scores = st.builds(Score, st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.02))


@pytest.mark.parametrize(
    ("recall", "drift", "keeps"),
    [
        (0.5, 0.0, True),
        (0.49, 0.005, True),
        (1.0, 0.005, True),
        (0.4899, 0.0, False),
        (0.5, 0.00501, False),
        (float("nan"), 0.0, False),
        (0.5, float("nan"), False),
    ],
)
def test_the_constraints_at_their_borders(recall, drift, keeps):
    assert Score(0.9, recall, drift).keeps(BEFORE) is keeps


def candidate(name: str, score: Score) -> Candidate:
    return Candidate(name, EmbeddingDelta(DeltaConfig(d_model=1, rank=1, gated=False)), score)


def chosen(*given_scores: Score) -> str:
    named = [candidate(str(row), score) for row, score in enumerate(given_scores)]
    return Training(named, BEFORE, Split([0, 1], [2], [])).chosen.name


def test_keeping_to_the_constraints_goes_before_a_higher_cosine():
    drifts, forgets = Score(0.9, 0.6, 0.1), Score(0.9, 0.3, 0.0)
    assert chosen(BEFORE, drifts, forgets, Score(0.6, 0.5, 0.001)) == "3"
    assert chosen(BEFORE, drifts, forgets) == "0"
    assert chosen(drifts, Score(0.95, 0.3, 0.1)) == "1"


@given(st.lists(scores, min_size=1, max_size=6))
def test_the_choice_is_the_best_feasible_one_and_the_first_of_equals(drawn):
    name = chosen(BEFORE, *drawn)
    feasible = [score.cosine if score.keeps(BEFORE) else -2.0 for score in [BEFORE, *drawn]]
    assert int(name) == feasible.index(max(feasible))


def some_pairs(make_prompts, lengths: list[int], seed: int) -> PairEmbeddings:
    return PairEmbeddings(make_prompts(lengths, seed=seed), make_prompts([n + 3 for n in lengths], seed=seed + 1))


@given(lengths, seeds, st.booleans(), st.sampled_from([None, 0.22]))
def test_scores_are_those_of_the_adapter_applied_to_every_token(make_prompts, make_adapter, lengths, seed, gated, cap):
    pairs, adapter = some_pairs(make_prompts, lengths, seed), make_adapter(seed, size=0.3, gated=gated, cap=cap)
    adjusted = pool(adapter(pairs.base))
    pools = adjusted_pools(adapter, PromptConstants.of(pairs.base))
    torch.testing.assert_close(pools, adjusted, rtol=1e-5, atol=1e-5)
    score, targets = Validation(pairs).score(adapter), pool(pairs.rewritten)
    cosine = torch.nn.functional.cosine_similarity(adjusted, targets).mean().item()
    drift = cosine_distances(targets, pool(adapter(pairs.rewritten))).mean().item()
    ranks = retrieval_ranks(adjusted, targets, pairs.rewrite_labels())
    assert score.cosine == pytest.approx(cosine, abs=1e-5)
    assert score.recall_at_1 == pytest.approx((ranks == 1).float().mean().item())
    assert score.drift == pytest.approx(drift, abs=1e-5)
    assert score.to_json() == {"cosine": score.cosine, "recall_at_1": score.recall_at_1, "drift": score.drift}


@given(lengths, seeds)
def test_the_untouched_prompts_score_as_an_untrained_adapter_does(make_prompts, lengths, seed):
    validation = Validation(some_pairs(make_prompts, lengths, seed))
    score = validation.score(EmbeddingDelta(DeltaConfig(d_model=DIM, rank=2)))
    assert validation.before == score
    assert score.drift == 0
    assert score.keeps(validation.before)


def test_rewrites_that_are_one_prompt_are_each_others_right_answers():
    sides = TextEmbeddings(torch.eye(3), torch.ones(3, dtype=torch.long))
    rewritten = TextEmbeddings(torch.eye(3)[[1, 1, 2]], torch.ones(3, dtype=torch.long))
    texts = [PromptPair("a", "One boat."), PromptPair("b", "one boat"), PromptPair("c", "two boats")]
    # the second and third prompts are their rewrites; the first is as near to all
    assert Validation(PairEmbeddings(sides, rewritten, texts)).before.recall_at_1 == pytest.approx(2 / 3)
    assert Validation(PairEmbeddings(sides, rewritten)).before.recall_at_1 == pytest.approx(2 / 3)
    other = [PromptPair("a", "one boat"), PromptPair("b", "one ship"), PromptPair("c", "two boats")]
    assert Validation(PairEmbeddings(sides, rewritten, other)).before.recall_at_1 == pytest.approx(1 / 3)
