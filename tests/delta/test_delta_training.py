"""Training finds what can be found, resumes bit for bit, leaves the test part alone and admits when nothing helps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.delta import train as training
from latentloom.delta.alignment import fit_aligned
from latentloom.delta.baselines import MEAN_DELTA, NO_ADAPTER, RIDGE, fit_ridge
from latentloom.delta.config import CAPS, TrainConfig
from latentloom.delta.model import EmbeddingDelta
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.delta.pooled_delta import PromptConstants
from latentloom.delta.pooling import pool
from latentloom.delta.split import Split
from latentloom.delta.train import Training, train
from latentloom.errors import CheckpointError, ConfigError
from latentloom.tensors import TextEmbeddings

DIM, NUM_PAIRS, MAP_RANK = 32, 200, 4
SHORT = TrainConfig(rank=6, cap=1.0, init="zero", epochs=7, lr=3e-3, val_frac=0.2, save_every=3)
SGD = "SGD from zero, cap 1"


def lengthened(targets: list[torch.Tensor], generator: torch.Generator) -> TextEmbeddings:
    """Rewrites: three times as many tokens as the prompt's, which scatter about its mean target."""
    prompts = []
    for target in targets:
        scatter = torch.randn(3 * len(target), DIM, generator=generator)
        prompts.append(target.mean(dim=0) + scatter - scatter.mean(dim=0))
    return TextEmbeddings.from_list(prompts)


def make_cache(change: Callable[[int, torch.Tensor], torch.Tensor]) -> PairEmbeddings:
    """Pairs whose rewrites lie where `change(row, tokens)` leads."""
    generator = torch.Generator().manual_seed(0)
    common = 0.3 * torch.randn(DIM, generator=generator)
    sizes = torch.randint(2, 7, (NUM_PAIRS,), generator=generator).tolist()
    prompts = [common + torch.randn(size, DIM, generator=generator) for size in sizes]
    rewritten = lengthened([change(row, prompt) for row, prompt in enumerate(prompts)], generator)
    texts = [PromptPair(f"boat {row}", f"a long boat, number {row}") for row in range(NUM_PAIRS)]
    return PairEmbeddings(TextEmbeddings.from_list(prompts), rewritten, texts)


@pytest.fixture(scope="module")
def cache() -> PairEmbeddings:
    """A low-rank map of every token and a constant shift."""
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(2, DIM, MAP_RANK, generator=generator) / DIM**0.5
    shift = 0.3 * torch.randn(DIM, generator=generator)
    return make_cache(lambda row, prompt: prompt + 2 * prompt @ down @ up.T + shift)


def assert_same(one: EmbeddingDelta, other: EmbeddingDelta) -> None:
    expected = other.state_dict()
    assert one.config == other.config
    assert all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())


def assert_same_training(one: Training, other: Training) -> None:
    assert one.split == other.split
    for first, second in zip(one.candidates, other.candidates, strict=True):
        assert (first.name, first.score) == (second.name, second.score)
        assert_same(first.adapter, second.adapter)
        if first.history is not None and second.history is not None:
            courses = [[row[:-1] for row in history.rows] for history in (first.history, second.history)]
            assert courses[0] == courses[1]  # all but the seconds


@pytest.fixture(scope="module")
def trained(cache: PairEmbeddings) -> Training:
    return train(cache, SHORT.model_copy(update={"epochs": 60, "lr": 1e-2, "cap": 2.0}))


def test_sgd_from_zero_beats_the_mean_delta(trained):
    cosines = {candidate.name: candidate.score.cosine for candidate in trained.candidates}
    sgd = cosines["SGD from zero, cap 2"]
    assert list(cosines) == [NO_ADAPTER, MEAN_DELTA, RIDGE, "SGD from zero, cap 2"]
    assert cosines[MEAN_DELTA] > cosines[NO_ADAPTER] + 0.02
    assert sgd > cosines[MEAN_DELTA] + 0.02


def test_the_gate_closes_on_rewrites_and_stays_open_on_prompts(trained, cache):
    adapter, test = trained.named("SGD from zero, cap 2").adapter, cache[trained.split.test]
    assert adapter.gate(test.base).mean() > 0.9
    assert adapter.gate(test.rewritten).mean() < 0.1
    assert trained.named("SGD from zero, cap 2").score.drift < 0.005 < trained.named(RIDGE).score.drift


def test_the_adapter_is_chosen_and_holds_on_pairs_that_it_never_saw(trained, cache):
    test = cache[trained.split.test]
    assert trained.chosen.name == "SGD from zero, cap 2"
    found = [
        torch.nn.functional.cosine_similarity(pool(side), pool(test.rewritten)).mean().item()
        for side in (trained.chosen.adapter(test.base), trained.named(MEAN_DELTA).adapter(test.base), test.base)
    ]
    assert found[0] > found[1] + 0.02 > found[2] + 0.02


def test_the_weights_are_those_of_the_best_epoch(trained):
    candidate = trained.named("SGD from zero, cap 2")
    assert candidate.score == candidate.history.best_score
    assert candidate.to_json()["best_epoch"] == candidate.history.best + 1
    first, last = (candidate.history.rows[row][0] for row in (0, -1))
    assert last < first  # the cosine loss


def test_nothing_is_left_to_train(trained):
    for candidate in trained.candidates:
        assert not candidate.adapter.training
        assert not any(parameter.requires_grad for parameter in candidate.adapter.parameters())


class StopEpochError(Exception):
    pass


def stop_at_call(monkeypatch: pytest.MonkeyPatch, number: int | None) -> list[int]:
    """Make the epoch of that number raise instead; gives a list that grows by one per epoch."""
    calls: list[int] = []
    whole = training.train_epoch

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) - 1 == number:
            raise StopEpochError
        return whole(*args, **kwargs)

    monkeypatch.setattr(training, "train_epoch", counted)
    return calls


@pytest.mark.parametrize("calls_before", [1, 7, 12, 18])
def test_an_interrupted_run_continues_bit_for_bit(cache, tmp_path, calls_before):
    config = SHORT.model_copy(update={"init": "auto"})  # three SGD runs of seven epochs
    with pytest.MonkeyPatch.context() as patch:
        stop_at_call(patch, calls_before)
        with pytest.raises(StopEpochError):
            train(cache, config, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        calls = stop_at_call(patch, None)
        resumed = train(cache, config, tmp_path)
    finished, epoch = divmod(calls_before, 7)
    assert len(calls) == 21 - 7 * finished - epoch // 3 * 3  # from the last checkpoint
    assert_same_training(resumed, train(cache, config))


def test_a_finished_run_is_not_trained_again(cache, tmp_path, monkeypatch):
    once = train(cache, SHORT, tmp_path)
    calls = stop_at_call(monkeypatch, 0)
    assert_same_training(train(cache, SHORT, tmp_path), once)
    assert not calls


def test_checkpoints_of_another_shape_are_refused(cache, tmp_path, monkeypatch):
    stop_at_call(monkeypatch, 4)
    with pytest.raises(StopEpochError):
        train(cache, SHORT, tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        train(cache, SHORT.model_copy(update={"rank": 5}), tmp_path)


def test_the_methods_train_alike(cache):
    fused, *others = (train(cache, SHORT.model_copy(update={"method": m})) for m in ("fused", "packed", "padded"))
    for other in others:
        for name, tensor in other.named(SGD).adapter.state_dict().items():
            torch.testing.assert_close(tensor, fused.named(SGD).adapter.state_dict()[name], rtol=1e-4, atol=1e-4)
        assert other.named(SGD).score.cosine == pytest.approx(fused.named(SGD).score.cosine, abs=1e-4)


def test_a_seed_gives_one_training_and_another_seed_another(cache):
    assert_same_training(train(cache, SHORT), train(cache, SHORT))
    assert train(cache, SHORT.model_copy(update={"seed": 1})).split != train(cache, SHORT).split


def test_the_test_part_is_never_touched(cache, tmp_path: Path):
    split = Split.of(cache, SHORT.val_frac, SHORT.test_frac, SHORT.seed)
    assert len(split.test) == 20
    sides = [cache.base.to_list(), cache.rewritten.to_list()]
    spoilt = [
        TextEmbeddings.from_list([prompt * torch.nan if row in split.test else prompt for row, prompt in enumerate(s)])
        for s in sides
    ]
    assert_same_training(train(PairEmbeddings(spoilt[0], spoilt[1], cache.pairs), SHORT, tmp_path), train(cache, SHORT))


def test_no_adapter_is_chosen_where_none_helps():
    shift = torch.randn(DIM, generator=torch.Generator().manual_seed(1))
    split = Split.of(make_cache(lambda row, prompt: prompt), SHORT.val_frac, SHORT.test_frac, SHORT.seed)
    validation = set(split.validation)
    # what the training pairs teach leads the validation pairs astray
    pairs = make_cache(lambda row, prompt: prompt - shift if row in validation else prompt + shift)
    trained = train(pairs, SHORT)
    assert trained.split == split
    assert trained.chosen.name == NO_ADAPTER
    assert torch.equal(trained.chosen.adapter(pairs.base).tokens, pairs.base.tokens)


def test_patience_ends_a_run_that_no_longer_improves(cache):
    config = SHORT.model_copy(update={"lr": 1e-9, "gate_lr_mult": 1.0, "patience": 2})
    history = train(cache, config).named(SGD).history
    assert history is not None
    assert len(history) < SHORT.epochs
    assert history.num_epochs_since_best == 2


@pytest.mark.parametrize("init", ["zero", "ridge", "mean"])
def test_a_run_starts_from_what_it_is_told_to(cache, init):
    config = SHORT.model_copy(update={"init": init, "lr": 1e-12, "epochs": 1, "cap": 1e6, "orth": False})
    trained = train(cache, config)
    started = trained.named(f"SGD from {init}, cap 1e+06").adapter
    expected = trained.named({"zero": NO_ADAPTER, "ridge": RIDGE, "mean": MEAN_DELTA}[init]).adapter
    if init == "ridge":
        assert started.config.rank < expected.config.rank
        torch.testing.assert_close(started.bias, expected.bias)
    else:
        tokens = cache.base.tokens
        torch.testing.assert_close(started.deltas(tokens), expected.deltas(tokens), rtol=1e-4, atol=1e-6)


def test_align_starts_from_the_fit_to_aligned_tokens(cache):
    config = SHORT.model_copy(update={"init": "align", "lr": 1e-12, "epochs": 1})
    trained = train(cache, config)
    pairs, validation = cache[trained.split.train], cache[trained.split.validation]
    sides = [PromptConstants.of(part.base) for part in (pairs, validation)]
    ridge = fit_ridge(sides[0], pool(pairs.rewritten), sides[1], pool(validation.rewritten))
    fit = fit_aligned(sides[0], pairs.rewritten, ridge, config.rank)
    started = trained.named("SGD from align, cap 1").adapter
    for found, expected in zip([started.down, started.up, started.bias], [*fit.factors(6), fit.bias], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(started.bias, ridge.bias, atol=1e-3)


def test_what_is_kept_and_scored_is_the_mean_of_the_weights(cache, monkeypatch):
    seen = []
    whole = training.train_epoch

    def watched(adapter: EmbeddingDelta, *args: Any, **kwargs: Any) -> torch.Tensor:
        losses = whole(adapter, *args, **kwargs)
        seen.append(adapter.up.detach().clone())
        return losses

    monkeypatch.setattr(training, "train_epoch", watched)
    config = SHORT.model_copy(update={"epochs": 2, "batch_size": NUM_PAIRS, "ema_decay": 0.25})
    candidate = train(cache, config).named(SGD)
    assert candidate.history is not None
    assert candidate.history.best == 1
    # one step per epoch; the decay is 1/11 at the first update and 2/12 at the second
    mean = (10 / 11 * seen[0]) * 2 / 12 + 10 / 12 * seen[1]  # up begins at zero
    torch.testing.assert_close(candidate.adapter.up, mean)
    assert not torch.allclose(candidate.adapter.up, seen[1])


def test_auto_tries_every_cap_from_every_start():
    names = [name for name, *_ in training.starts(TrainConfig())]
    assert names == [f"SGD from {init}, cap {cap:g}" for cap in CAPS for init in ("zero", "ridge", "align")]


def test_too_few_pairs_are_refused(cache):
    with pytest.raises(ConfigError, match="2 pairs"):
        train(cache[:2], SHORT)
