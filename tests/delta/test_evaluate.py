"""Adjustments on held-out pairs: what the identity, a perfect and a harmful one must come to."""

import json
import math

import pytest
import torch

from latentloom.delta.cache import PairEmbeddings
from latentloom.delta.evaluate import evaluate_adjustments
from latentloom.delta.pairs import PromptPair
from latentloom.delta.pooling import pool
from latentloom.errors import ConfigError, LatentLoomError, ShapeError
from latentloom.tensors import TextEmbeddings

DIM = 8
ZERO = torch.zeros(DIM)
BUCKETS_AND_ENDS = {
    "0": (0,),
    "1-4": (1, 4),
    "5-8": (5, 8),
    "9-16": (9, 16),
    "17-32": (17, 32),
    "33-64": (33, 64),
    "65+": (65, 512),
}


def prompts(seed: int, lengths: list[int]) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(sum(lengths), DIM, generator=generator), torch.tensor(lengths))


def pairs_of(base: TextEmbeddings, rewritten: TextEmbeddings, texts: list[str] | None = None) -> PairEmbeddings:
    pairs = [PromptPair(f"base {text}", text) for text in texts] if texts else None
    return PairEmbeddings(base, rewritten, pairs, None)


@pytest.fixture
def test_pairs() -> PairEmbeddings:
    return pairs_of(prompts(0, [3, 7, 3, 12, 20, 5]), prompts(1, [30, 9, 14, 25, 70, 8]), [*"abcdef"])


def identity(embeddings: TextEmbeddings) -> TextEmbeddings:
    return embeddings


def shifted_to(goal: torch.Tensor, base: TextEmbeddings):
    """An adjustment that moves each of the base prompts exactly to its goal and leaves others alone."""
    shifts = dict(zip(map(tuple, pool(base).tolist()), goal - pool(base), strict=True))

    def adjust(embeddings: TextEmbeddings) -> TextEmbeddings:
        rows = [shifts.get(tuple(row), ZERO) for row in pool(embeddings).tolist()]
        owners = torch.repeat_interleave(torch.arange(len(embeddings)), embeddings.lengths)
        return TextEmbeddings(embeddings.tokens + torch.stack(rows)[owners], embeddings.lengths)

    return adjust


def perfect(pairs: PairEmbeddings):
    return shifted_to(pool(pairs.rewritten), pairs.base)


def doubled(embeddings: TextEmbeddings) -> TextEmbeddings:
    return TextEmbeddings(2 * embeddings.tokens, embeddings.lengths)


def reversed_channels(embeddings: TextEmbeddings) -> TextEmbeddings:
    return TextEmbeddings(embeddings.tokens.flip(1), embeddings.lengths)


def test_the_identity_changes_nothing_exactly(test_pairs):
    outcome = evaluate_adjustments({"none": identity, "again": identity}, test_pairs, ZERO, ZERO).outcomes["again"]
    assert outcome.drift.tolist() == [0.0] * 6
    for name in ("gain", "centred_gain", "share_gaining", "drift"):
        value = outcome.estimates[name]
        assert (value.mean, value.low, value.high) == (0, 0, 0)
    assert outcome.pooled_norm_ratios.tolist() == [1.0] * 6
    assert outcome.token_norm_ratios.tolist() == [1.0] * 50
    assert (outcome.cka, outcome.neighbour_overlap) == (1.0, 1.0)
    assert outcome.rounding.share_of_change is None


def test_a_perfect_adjustment_reaches_and_finds_every_rewrite(test_pairs):
    centre_base, centre_rewritten = prompts(2, [1, 1]).tokens
    adjustments = {"none": identity, "perfect": perfect(test_pairs)}
    evaluation = evaluate_adjustments(adjustments, test_pairs, centre_base, centre_rewritten)
    outcome = evaluation.outcomes["perfect"]
    assert outcome.cosine.tolist() == pytest.approx([1] * 6)
    assert outcome.centred.tolist() == pytest.approx([1] * 6)
    assert outcome.ranks.tolist() == [1] * 6
    assert outcome.estimates["recall_at_1"].mean == outcome.estimates["mrr"].mean == 1
    assert outcome.estimates["share_gaining"].mean == 1
    assert outcome.drift.tolist() == [0.0] * 6
    gain = evaluation.gain("perfect")
    torch.testing.assert_close(gain, outcome.cosine - evaluation.outcomes["none"].cosine)
    assert outcome.estimates["gain"].mean == pytest.approx(float(gain.mean()))


def test_a_scale_changes_lengths_and_nothing_else(test_pairs):
    outcome = evaluate_adjustments({"none": identity, "doubled": doubled}, test_pairs, ZERO, ZERO).outcomes["doubled"]
    assert outcome.pooled_norm_ratios.tolist() == pytest.approx([2] * 6)
    assert outcome.token_norm_ratios.tolist() == pytest.approx([2] * 50)
    assert outcome.estimates["gain"].mean == pytest.approx(0, abs=1e-7)
    assert outcome.estimates["share_gaining"].mean == 0  # rounding is no gain
    assert outcome.drift.tolist() == pytest.approx([0] * 6, abs=1e-12)
    assert outcome.cka == pytest.approx(1)


def test_drift_is_measured_on_the_rewrites(test_pairs):
    outcome = evaluate_adjustments({"none": identity, "flip": reversed_channels}, test_pairs, ZERO, ZERO).outcomes[
        "flip"
    ]
    rewritten = pool(test_pairs.rewritten)
    expected = 1 - torch.cosine_similarity(rewritten, rewritten.flip(1))
    torch.testing.assert_close(outcome.drift.float(), expected)


def test_centres_are_subtracted_from_the_sides_that_the_docstring_names(test_pairs):
    centre_base, centre_rewritten = prompts(2, [1, 1]).tokens
    evaluation = evaluate_adjustments({"none": identity}, test_pairs, centre_base, centre_rewritten)
    base, rewritten = pool(test_pairs.base), pool(test_pairs.rewritten)
    centred = torch.cosine_similarity(base - centre_rewritten, rewritten - centre_rewritten)
    shifted = torch.cosine_similarity(base - centre_base, rewritten - centre_rewritten)
    torch.testing.assert_close(evaluation.outcomes["none"].centred.float(), centred)
    assert evaluation.shifted.mean == pytest.approx(float(shifted.mean()), abs=1e-6)


def test_a_shift_by_the_difference_of_the_centres_reaches_the_shifted_cosine(test_pairs):
    centres = pool(test_pairs.base).mean(0), pool(test_pairs.rewritten).mean(0)
    shift = shifted_to(pool(test_pairs.base) + (centres[1] - centres[0]), test_pairs.base)
    evaluation = evaluate_adjustments({"none": identity, "mean delta": shift}, test_pairs, *centres)
    assert evaluation.outcomes["mean delta"].estimates["centred"].mean == pytest.approx(
        evaluation.shifted.mean, abs=1e-6
    )


def test_rewrites_of_one_text_are_all_right():
    base = TextEmbeddings(torch.eye(3), torch.tensor([1, 1, 1]))
    rewritten = TextEmbeddings(torch.eye(3)[[1, 0, 2]], torch.tensor([1, 1, 1]))  # the first two stand for each other
    ranks = [
        evaluate_adjustments({"none": identity}, pairs_of(base, rewritten, texts), torch.zeros(3), torch.zeros(3))
        .outcomes["none"]
        .ranks.tolist()
        for texts in (["one", "two", "three"], ["A cat.", "a  CAT", "three"])
    ]
    assert ranks == [[3, 3, 1], [1, 1, 1]]


def test_without_texts_equal_embeddings_are_one_prompt():
    base = TextEmbeddings(torch.eye(2), torch.tensor([1, 1]))
    same = TextEmbeddings(torch.ones(2, 2), torch.tensor([1, 1]))
    evaluation = evaluate_adjustments({"none": identity}, pairs_of(base, same), torch.zeros(2), torch.zeros(2))
    assert evaluation.outcomes["none"].ranks.tolist() == [1, 1]
    assert evaluation.pairs is None


def test_buckets_hold_the_pairs_of_their_length_and_empty_ones_are_left_out(test_pairs):
    evaluation = evaluate_adjustments({"none": identity, "perfect": perfect(test_pairs)}, test_pairs, ZERO, ZERO)
    buckets = evaluation.outcomes["perfect"].buckets
    assert [(bucket.tokens, bucket.num_pairs) for bucket in buckets] == [
        ("1-4", 2),
        ("5-8", 2),
        ("9-16", 1),
        ("17-32", 1),
    ]
    gain = evaluation.gain("perfect")
    assert buckets[0].gain.mean == pytest.approx(float(gain[[0, 2]].mean()))
    assert buckets[3].gain.low == pytest.approx(float(gain[4]))


@pytest.mark.parametrize(
    ("bucket", "length"),
    [(name, length) for name, lengths in BUCKETS_AND_ENDS.items() for length in lengths],
)
def test_every_length_has_a_bucket(bucket, length):
    evaluation = evaluate_adjustments({"none": identity}, pairs_of(prompts(0, [length]), prompts(1, [4])), ZERO, ZERO)
    assert [each.tokens for each in evaluation.outcomes["none"].buckets] == [bucket]


def test_gates_are_told_apart_by_side_and_length(test_pairs):
    gates = {"doubled": lambda embeddings: 1 / embeddings.lengths.float()}
    evaluation = evaluate_adjustments({"none": identity, "doubled": doubled}, test_pairs, ZERO, ZERO, gates)
    gate = evaluation.gates["doubled"]
    assert gate.base.mean == pytest.approx((1 / 3 + 1 / 7 + 1 / 3 + 1 / 12 + 1 / 20 + 1 / 5) / 6)
    assert gate.difference.mean == pytest.approx(gate.base.mean - gate.rewritten.mean)
    assert [(bucket.tokens, bucket.num_prompts) for bucket in gate.rewritten_buckets] == [
        ("5-8", 1),
        ("9-16", 2),
        ("17-32", 2),
        ("65+", 1),
    ]
    assert gate.base_buckets[0].gate.mean == pytest.approx(1 / 3)


def test_differences_are_paired_and_mirror_each_other(test_pairs):
    adjustments = {"none": identity, "perfect": perfect(test_pairs), "flip": reversed_channels}
    evaluation = evaluate_adjustments(adjustments, test_pairs, ZERO, ZERO, seed=4)
    there, back = (evaluation.differences[a][b]["cosine"] for a, b in (("perfect", "flip"), ("flip", "perfect")))
    own = evaluation.outcomes["perfect"].cosine - evaluation.outcomes["flip"].cosine
    assert there.mean == pytest.approx(float(own.mean()))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert evaluation.differences["perfect"]["none"]["cosine"].low == pytest.approx(
        evaluation.outcomes["perfect"].estimates["gain"].low
    )
    assert sorted(evaluation.differences["none"]) == ["flip", "perfect"]


def test_many_prompts_are_adjusted_some_at_a_time_to_the_same_end():
    lengths = [1 + number % 5 for number in range(300)]
    pairs = pairs_of(prompts(0, lengths), prompts(1, lengths[::-1]))
    sizes = []

    def watched(embeddings: TextEmbeddings) -> TextEmbeddings:
        sizes.append(len(embeddings))
        return reversed_channels(embeddings)

    evaluation = evaluate_adjustments({"none": identity, "flip": watched}, pairs, ZERO, ZERO)
    assert max(sizes) <= 128
    expected = torch.cosine_similarity(pool(pairs.base).flip(1), pool(pairs.rewritten))
    torch.testing.assert_close(evaluation.outcomes["flip"].cosine.float(), expected)


def test_half_precision_pairs_are_adjusted_in_float32_and_the_rounding_is_told():
    half = pairs_of(prompts(0, [4, 4]).to(dtype=torch.bfloat16), prompts(1, [4, 4]).to(dtype=torch.bfloat16))
    third = {"none": identity, "third": lambda e: TextEmbeddings(e.tokens / 3, e.lengths)}
    evaluation = evaluate_adjustments(third, half, ZERO, ZERO)
    assert evaluation.outcomes["none"].rounding.max_token_error == 0
    rounding = evaluation.outcomes["third"].rounding
    assert 0 < rounding.max_token_error < 2**-8
    tokens = half.base.tokens.float() / 3
    lost, change = (tokens - tokens.bfloat16().float()).norm(), (tokens - 3 * tokens).norm()
    assert rounding.share_of_change == pytest.approx(float(lost / change), rel=1e-4)
    assert 0 < rounding.mean_distance <= rounding.max_distance < 1e-4


def numbers_in(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    assert value is not None
    return [value] if isinstance(value, float) else []


@pytest.mark.parametrize("lengths", [[3, 7, 0], [0], [4], [2, 2]])
def test_json_holds_no_nan_and_no_null_however_few_the_pairs(lengths):
    pairs = pairs_of(prompts(0, lengths), prompts(1, [5] * len(lengths)))
    gates = {"doubled": lambda embeddings: torch.ones(len(embeddings))}
    evaluation = evaluate_adjustments({"none": identity, "doubled": doubled}, pairs, ZERO, ZERO, gates)
    found = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert all(math.isfinite(number) for number in numbers_in(found))
    assert found["num_pairs"] == len(lengths)


def test_json_tells_every_figure(test_pairs):
    adjustments = {"none": identity, "perfect": perfect(test_pairs)}
    evaluation = evaluate_adjustments(
        adjustments, test_pairs, ZERO, ZERO, {"perfect": lambda e: e.lengths / 100}, seed=3
    )
    found = json.loads(json.dumps(evaluation.to_json()))
    assert found["intervals"] == {
        "method": "percentile bootstrap over test pairs",
        "confidence": 0.95,
        "num_resamples": 1000,
        "seed": 3,
    }
    entry = found["adjustments"]["perfect"]
    assert set(entry["cosine"]) == {"mean", "low", "high", "median", "p10", "p90"}
    assert entry["recall_at_1"] == {"mean": 1, "low": 1, "high": 1}
    assert entry["identity_drift"]["max"] == 0
    assert [bucket["tokens"] for bucket in entry["by_length"]] == ["1-4", "5-8", "9-16", "17-32"]
    assert entry["versus"]["none"]["cosine"]["mean"] == pytest.approx(entry["gain"]["mean"])
    assert set(entry) == {
        *("cosine", "gain", "share_gaining", "centred", "centred_gain", "recall_at_1", "mrr", "identity_drift"),
        *("pooled_norm_ratio", "token_norm_ratio", "cka", "neighbour_overlap", "bfloat16", "by_length", "versus"),
    }
    assert found["gates"]["perfect"]["base"]["mean"] == pytest.approx(50 / 600)
    assert "share_of_change" not in found["adjustments"]["none"]["bfloat16"]


def test_one_seed_gives_one_evaluation(test_pairs):
    one, same, other = (
        evaluate_adjustments({"none": identity, "flip": reversed_channels}, test_pairs, ZERO, ZERO, seed=seed).to_json()
        for seed in (1, 1, 2)
    )
    assert one == same
    assert one["adjustments"] != other["adjustments"]


def test_the_first_adjustment_must_be_the_identity(test_pairs):
    with pytest.raises(ConfigError, match="the first adjustment is 'doubled' and changes prompts; give the identity"):
        evaluate_adjustments({"doubled": doubled, "none": identity}, test_pairs, ZERO, ZERO)


def test_what_cannot_be_measured_is_refused(test_pairs):
    def shorter(embeddings: TextEmbeddings) -> TextEmbeddings:
        return TextEmbeddings(embeddings.tokens[1:], embeddings.lengths - (torch.arange(len(embeddings)) == 0).long())

    def broken(embeddings: TextEmbeddings) -> TextEmbeddings:
        return TextEmbeddings(embeddings.tokens / 0, embeddings.lengths)

    with pytest.raises(ShapeError, match="'shorter' changes the number of tokens"):
        evaluate_adjustments({"none": identity, "shorter": shorter}, test_pairs, ZERO, ZERO)
    with pytest.raises(LatentLoomError, match="the adjustment 'broken' gives NaN or infinities"):
        evaluate_adjustments({"none": identity, "broken": broken}, test_pairs, ZERO, ZERO)
    gates = {"none": lambda embeddings: torch.full((len(embeddings),), math.nan)}
    with pytest.raises(LatentLoomError, match="the gate of 'none' gives NaN or infinities"):
        evaluate_adjustments({"none": identity}, test_pairs, ZERO, ZERO, gates)
    with pytest.raises(ConfigError, match="a gate for 'other', which is none of none"):
        evaluate_adjustments({"none": identity}, test_pairs, ZERO, ZERO, {"other": lambda e: e.lengths.float()})
    with pytest.raises(ConfigError, match="no adjustment was given"):
        evaluate_adjustments({}, test_pairs, ZERO, ZERO)
    with pytest.raises(ShapeError, match="no test pairs"):
        evaluate_adjustments({"none": identity}, test_pairs[[]], ZERO, ZERO)
