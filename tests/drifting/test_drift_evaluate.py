"""Scores of refined images: what they are of, that they tell worse from better, and what other real images reach."""

import json

import pytest
import torch
from torch.nn import functional as F

from latentloom.drifting import judge as judge_module
from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.evaluate import Scores, aggregate, score, score_real, stratified_rows
from latentloom.drifting.judge import Judge, train_judge
from latentloom.drifting.pictures import one_of_each_class
from latentloom.errors import ShapeError
from latentloom.runs import load_config
from latentloom.runs.estimates import Estimate


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(load_config(DataConfig, None), torch.device("cpu"))


@pytest.fixture(scope="module")
def judge(digits: ImageData) -> Judge:
    """A judge of a few passes, which is enough to tell blurred digits from sharp ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge_module, "MAX_STEPS", 150)
        return train_judge(digits.train, seed=0)


@pytest.fixture(scope="module")
def held_out(digits: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    return digits.held_out.load(torch.arange(len(digits.held_out))), digits.held_out.labels


def some_given(num: int) -> torch.Tensor:
    """4 of 16 patches."""
    return torch.arange(16).expand(num, 16) % 4 == 0


def test_the_clean_images_score_perfectly_but_for_what_the_judge_misreads(judge, held_out):
    samples, labels = held_out
    found = score(judge, samples, samples, labels, some_given(len(samples)), 2)
    assert found.fd.value == pytest.approx(0, abs=1e-6)
    assert found.mse_missing == found.mse_all == Estimate(0, 0, 0)
    assert found.accuracy.value == pytest.approx(float((judge.classify(samples) == labels).double().mean()))
    assert found.accuracy.low < found.accuracy.value <= found.accuracy.high <= 1
    assert (found.num_images, found.num_seeds) == (539, 1)


def test_blurred_images_score_worse_the_more_they_are_blurred(judge, held_out, digits):
    samples, labels = held_out
    blurred = F.avg_pool2d(samples, 3, 1, 1, count_include_pad=False)
    scores = [
        score(judge, samples.lerp(blurred, share), samples, labels, some_given(len(samples)), 2)
        for share in (0.1, 0.5, 1.0)
    ]
    for name in ("fd", "kid", "mse_missing"):
        values = [getattr(one, name).value for one in scores]
        assert values == sorted(values)
    assert scores[2].accuracy.value < scores[0].accuracy.value
    real = score_real(judge, digits.train, digits.held_out)
    assert 0 < real.fd.value < 0.2 * scores[2].fd.value
    assert abs(real.kid.value) < 0.1 * scores[2].kid.value
    assert real.kid.low < 0 < real.kid.high
    assert real.mse_missing is None
    assert real.num_images == 539
    expected = score(judge, samples, samples, labels, some_given(len(samples)), 2).accuracy.value
    assert real.accuracy.value == pytest.approx(expected)


def test_real_images_are_as_many_as_those_of_the_methods(judge, digits, held_out):
    """FD falls with the number of images: that of all held-out ones does not compare with that of twenty."""
    samples, labels = held_out
    rows = one_of_each_class(labels, 20)
    few, everything = (score_real(judge, digits.train, digits.held_out, rows=chosen) for chosen in (rows, None))
    assert (few.num_images, everything.num_images) == (20, 539)
    assert few.fd.value > 1.5 * everything.fd.value
    assert few.accuracy.value == pytest.approx(float((judge.classify(samples[rows]) == labels[rows]).double().mean()))
    assert everything == score_real(judge, digits.train, digits.held_out, rows=torch.arange(539))


def test_errors_are_of_the_patches_that_were_missing(judge):
    real = torch.zeros(3, 1, 8, 8)
    refined = real.clone()
    refined[:, :, :2, :2] = 3.0  # patch 0
    refined[:, :, :2, 2:4] = 1.0  # patch 1
    given = torch.zeros(3, 16, dtype=torch.bool)
    given[:, 0] = True
    found = score(judge, refined, real, torch.zeros(3, dtype=torch.int64), given, 2)
    assert found.mse_missing is not None
    assert found.mse_all is not None
    assert found.mse_missing.value == pytest.approx(1 / 15)
    assert found.mse_all.value == pytest.approx((9 + 1) / 16)


def test_images_with_more_missing_patches_count_for_more(judge):
    real = torch.zeros(2, 1, 8, 8)
    refined = torch.stack([torch.full((1, 8, 8), 1.0), torch.full((1, 8, 8), 2.0)])
    given = torch.zeros(2, 16, dtype=torch.bool)
    given[0, :12] = True  # 4 missing with an error of 1, 16 missing with an error of 4
    found = score(judge, refined, real, torch.zeros(2, dtype=torch.int64), given, 2)
    assert found.mse_missing is not None
    assert found.mse_missing.value == pytest.approx((4 * 1 + 16 * 4) / 20)
    assert (found.mse_missing.low, found.mse_missing.high) == pytest.approx((1, 4))


def test_images_of_which_everything_was_given_have_no_error_of_what_was_missing(judge):
    images = torch.zeros(3, 1, 8, 8)
    given = torch.ones(3, 16, dtype=torch.bool)
    assert score(judge, images, images, torch.zeros(3, dtype=torch.int64), given, 2).mse_missing is None


def test_a_mask_of_other_patches_is_refused(judge):
    images = torch.zeros(3, 1, 8, 8)
    with pytest.raises(ShapeError, match="16 patches with sides of 4 are not those of an image of 8 x 8"):
        score(judge, images, images, torch.zeros(3, dtype=torch.int64), some_given(3), 4)


def test_stratified_rows_follow_the_wanted_classes():
    labels = torch.tensor([0] * 10 + [1] * 2 + [2] * 5)
    wanted = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    rows = stratified_rows(labels, wanted, torch.Generator().manual_seed(0))
    assert torch.bincount(labels[rows]).tolist() == [3, 2, 1]  # class 1 has no third
    assert len(rows.unique()) == len(rows)
    assert not torch.equal(rows, stratified_rows(labels, wanted, torch.Generator().manual_seed(1)))


def one(value: float, missing: float | None = None) -> Scores:
    estimate = Estimate(value, value - 1, value + 1)
    errors = None if missing is None else Estimate(missing, missing, missing)
    return Scores(estimate, estimate, estimate, errors, errors, num_images=5)


def test_scores_of_several_seeds_become_their_mean_and_range():
    together = aggregate([one(1.0, 0.5), one(2.0, 0.1), one(6.0, 0.3)])
    assert together.fd == Estimate(3.0, 1.0, 6.0)
    assert together.mse_missing is not None
    assert (together.mse_missing.value, together.mse_missing.low) == pytest.approx((0.3, 0.1))
    assert (together.num_seeds, together.num_images) == (3, 5)
    assert aggregate([one(1.0)]) == one(1.0)
    assert aggregate([one(1.0), one(2.0)]).mse_missing is None


def test_scores_go_to_json():
    scores = one(1.0)
    assert json.loads(json.dumps(scores.to_json()))["kid"] == {"value": 1.0, "low": 0.0, "high": 2.0}
    assert scores.to_json()["mse_all"] is None
