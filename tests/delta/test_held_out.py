"""An adapter is measured on what its training left alone, beside baselines that saw what it saw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentloom.delta.baselines import MEAN_DELTA, NO_ADAPTER, RIDGE, fit_mean, identity_adapter
from latentloom.delta.config import TrainConfig
from latentloom.delta.files import save_adapter
from latentloom.delta.held_out import ADAPTER, evaluate_held_out
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.delta.pooling import pool
from latentloom.delta.split import Split
from latentloom.delta.training_run import run_training
from latentloom.errors import CheckpointError, ConfigError

SETTINGS = TrainConfig(rank=3, cap=1.0, init="zero", epochs=2, lr=1e-2, val_frac=0.2, test_frac=0.2)


@pytest.fixture(scope="module")
def cache(make_prompts) -> PairEmbeddings:
    """Thirty prompts, and rewrites that lie beside them."""
    base = make_prompts([1 + row % 4 for row in range(30)])
    rewritten = type(base)(base.tokens + torch.linspace(-1, 1, base.dim), base.lengths)
    return PairEmbeddings(base, rewritten, [PromptPair(f"boat {row}", f"A long boat {row}.") for row in range(30)], "e")


@pytest.fixture(scope="module")
def adapter(cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run_training(cache, SETTINGS, folder, "boats")
    return folder / "embdelta_adapter.pt"


def test_on_its_own_cache_the_recorded_test_rows_and_all_baselines_are_used(cache, adapter: Path):
    split = Split.of(cache, SETTINGS.val_frac, SETTINGS.test_frac, SETTINGS.seed)
    held_out = evaluate_held_out(cache, adapter)
    assert list(held_out.adapters) == [NO_ADAPTER, MEAN_DELTA, RIDGE, ADAPTER]
    assert held_out.test.pairs == [cache.pairs[row] for row in split.test]
    assert len(held_out.test) == 6
    train = cache[split.train]
    mean = fit_mean(pool(train.base), pool(train.rewritten))
    torch.testing.assert_close(held_out.adapters[MEAN_DELTA].bias, mean.bias)
    assert held_out.about == "the 6 test pairs of the cache, baselines fitted on its 18 training pairs"
    assert held_out.record["split"]["test"] == split.test


def test_the_recorded_rows_count_and_not_a_split_drawn_anew(cache, adapter: Path, tmp_path: Path):
    held_out = evaluate_held_out(cache, adapter)
    record = {**held_out.record, "split": {"train": [0, 1, 2, 3], "validation": [4, 5], "test": [9, 7]}}
    save_adapter(tmp_path / "other.safetensors", held_out.adapters[ADAPTER], record)
    test = evaluate_held_out(cache, tmp_path / "other.safetensors").test
    assert [pair.base for pair in test.pairs or []] == ["boat 9", "boat 7"]


def test_on_another_cache_the_adapter_stands_beside_no_adapter_alone(cache, adapter: Path):
    other = cache[slice(0, 12)]
    held_out = evaluate_held_out(other, adapter)
    assert list(held_out.adapters) == [NO_ADAPTER, ADAPTER]
    assert len(held_out.test) == 12
    assert held_out.about == "all 12 pairs of a cache that the adapter was not trained on"


def test_another_encoder_is_refused_and_an_unknown_one_is_not(cache, adapter: Path):
    with pytest.raises(CheckpointError, match="embeddings of encoder e, and this cache is of f; give a cache"):
        evaluate_held_out(replace(cache, encoder="f"), adapter)
    assert len(evaluate_held_out(replace(cache, encoder=None), adapter).test) == 6


def test_an_adapter_of_another_width_is_refused(cache, tmp_path: Path):
    save_adapter(tmp_path / "a.safetensors", identity_adapter(cache.dim + 1))
    with pytest.raises(CheckpointError, match="25"):
        evaluate_held_out(cache, tmp_path / "a.safetensors")


def test_an_adapter_without_a_record_is_measured_on_the_whole_cache(cache, tmp_path: Path):
    save_adapter(tmp_path / "a.safetensors", identity_adapter(cache.dim))
    assert len(evaluate_held_out(cache, tmp_path / "a.safetensors").test) == 30


def test_a_training_on_the_whole_cache_leaves_nothing_to_evaluate(cache, tmp_path: Path):
    training = run_training(cache, SETTINGS.model_copy(update={"test_frac": 0.0}), tmp_path, "boats")
    assert training.split.test == []
    assert len(training.split.train) == 24
    with pytest.raises(ConfigError, match=r"on this whole cache \(test_frac 0\); give a cache of other pairs"):
        evaluate_held_out(cache, tmp_path / "embdelta_adapter.safetensors")
