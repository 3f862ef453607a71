"""The judge: it reads digits well, is the same for the same seed, and takes samples of any shape."""

import pytest
import torch

from latentloom.drifting import judge as judge_module
from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import ImageData, load_data
from latentloom.drifting.images import TensorImages
from latentloom.drifting.judge import Judge, train_judge
from latentloom.errors import ConfigError
from latentloom.runs import load_config


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data(load_config(DataConfig, None), torch.device("cpu"))


def two_kinds(num: int, shape: tuple[int, int, int], seed: int = 0) -> TensorImages:
    """Noise that is lighter in one class than in the other."""
    labels = torch.arange(num) % 2
    noise = torch.randn(num, *shape, generator=torch.Generator().manual_seed(seed))
    return TensorImages(0.3 * noise + labels.view(-1, 1, 1, 1) - 0.5, labels, ("dark", "light"), "two kinds")


def test_a_judge_of_digits_is_right_on_98_percent_of_held_out_ones(digits):
    judge = train_judge(digits.train, seed=0)
    samples = digits.held_out.load(torch.arange(len(digits.held_out)))
    accuracy = (judge.classify(samples) == digits.held_out.labels).double().mean()
    assert accuracy >= 0.98
    assert not judge.training
    assert not any(parameter.requires_grad for parameter in judge.parameters())
    features = judge.features(samples)
    assert features.shape == (len(samples), 64)
    assert features.min() == 0
    assert torch.equal(judge.read_class(features), judge.classify(samples))
    logits = judge(samples)
    assert (logits.argmax(dim=1) == judge.classify(samples)).all()
    of_training = judge.features(digits.train.load(torch.arange(len(digits.train))))
    assert of_training.var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-4)


def test_a_judge_depends_on_its_seed_only_and_leaves_the_random_state_alone(monkeypatch):
    monkeypatch.setattr(judge_module, "MAX_STEPS", 5)
    images = two_kinds(100, (1, 8, 8))
    probe = torch.randn(6, 1, 8, 8)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_judge(images, seed=3).features(probe)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(train_judge(images, seed=3).features(probe), first)
    assert not torch.equal(train_judge(images, seed=4).features(probe), first)


@pytest.mark.parametrize("shape", [(3, 64, 64), (16, 8, 8), (1, 2, 2), (4, 12, 20)])
def test_a_judge_learns_from_samples_of_any_shape(shape, monkeypatch):
    monkeypatch.setattr(judge_module, "MAX_STEPS", 30)
    judge = train_judge(two_kinds(128, shape), seed=0)
    held_out = two_kinds(64, shape, seed=1)
    samples = held_out.load(torch.arange(64))
    assert judge.features(samples).shape == (64, 64)
    assert (judge.classify(samples) == held_out.labels).double().mean() > 0.9


def test_every_cell_of_a_large_sample_matters():
    torch.manual_seed(0)
    judge = Judge((3, 64, 64), 5).eval()
    samples = torch.zeros(1, 3, 64, 64, requires_grad=True)
    judge.body[:4](samples).square().sum().backward()
    assert samples.grad is not None
    assert (samples.grad != 0).all()


def test_features_do_not_depend_on_what_they_are_computed_with(monkeypatch):
    torch.manual_seed(0)
    judge, samples = Judge((1, 8, 8), 3), torch.randn(10, 1, 8, 8)
    together = judge.features(samples)  # also in training mode, without dropout
    monkeypatch.setattr(judge_module, "_SAMPLES_AT_ONCE", 3)
    torch.testing.assert_close(judge.features(samples), together)
    torch.testing.assert_close(judge.features(samples.double()), together)


def test_images_of_one_class_cannot_be_judged():
    images = TensorImages(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64), ("only",), "one class")
    with pytest.raises(ConfigError, match="4 images of 1 classes"):
        train_judge(images)
