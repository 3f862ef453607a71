"""A training on disk leaves all there is to know, continues where it stopped, and refuses to mix with another."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from latentloom.delta import train as training
from latentloom.delta.config import TrainConfig
from latentloom.delta.files import load_embdelta_adapter, read_adapter
from latentloom.delta.pair_embeddings import PairEmbeddings
from latentloom.delta.pairs import PromptPair
from latentloom.delta.split import Split
from latentloom.delta.training_run import cache_digest, run_training
from latentloom.errors import ConfigError
from latentloom.runs import RunRecord

SETTINGS = TrainConfig(rank=3, cap=1.0, init="zero", epochs=2, lr=1e-2, val_frac=0.2, save_every=1)


@pytest.fixture(scope="module")
def cache(make_prompts) -> PairEmbeddings:
    """Thirty prompts, and rewrites that lie beside them."""
    base = make_prompts([1 + row % 4 for row in range(30)])
    shift = torch.linspace(-1, 1, base.dim)
    rewritten = type(base)(base.tokens + shift, base.lengths)
    return PairEmbeddings(base, rewritten, [PromptPair(f"boat {row}", f"A long boat {row}.") for row in range(30)], "e")


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "new" / "run"
    run_training(cache, SETTINGS, folder, "thirty boats")
    return folder


def test_a_run_leaves_its_files(finished: Path):
    names = {path.name for path in finished.iterdir()}
    adapters = {"embdelta_adapter.safetensors", "embdelta_adapter.pt"}
    kept = {"config.toml", "record.json", "cache.json", "split.json", "metrics.json", "report.html"}
    assert names == {*adapters, *kept, "checkpoints", "tensorboard"}
    assert list((finished / "tensorboard").iterdir())
    assert "thirty boats" in (finished / "report.html").read_text("utf-8")


def test_the_run_says_what_it_trained_before_it_started(finished: Path):
    record = RunRecord.read(finished)
    facts = record.trainings["adapter"]
    assert (facts.data.pattern, facts.batch_size, facts.steps) == ("thirty boats", facts.data.num_samples, 2)
    assert facts.sampling is not None
    assert facts.temperatures == (SETTINGS.tau,)
    assert [(encoder.checkpoint, encoder.frozen) for encoder in facts.encoders or ()] == [("e", True)]
    assert (record.throughput["pairs"] or 0) > 0


def test_both_formats_hold_the_same_adapter_and_record(finished: Path, cache):
    files = [finished / f"embdelta_adapter{suffix}" for suffix in (".safetensors", ".pt")]
    one, other = (load_embdelta_adapter(file, cache.dim) for file in files)
    assert one.config == other.config
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    assert torch.equal(one(cache.base).tokens, other(cache.base).tokens)
    records = [read_adapter(file).record for file in files]
    assert records[0] == records[1]


def test_the_record_says_how_the_adapter_came_about(finished: Path, cache):
    split = Split.of(cache, 0.2, 0.1, 0)
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    record = read_adapter(finished / "embdelta_adapter.safetensors").record
    assert record is not None
    assert record["split"] == parts == json.loads((finished / "split.json").read_text())
    assert record["cache"] == {"digest": cache_digest(cache), "encoder": "e", "num_pairs": 30}
    assert record["settings"] == SETTINGS.model_dump()
    metrics = json.loads((finished / "metrics.json").read_text())
    assert [item["name"] for item in metrics["candidates"]] == [
        *("no adapter", "mean delta", "ridge"),
        "SGD from zero, cap 1",
    ]
    assert metrics["chosen"] in metrics["decision"]
    run = RunRecord.read(finished)
    assert (run.status, run.id, run.data, run.decision) == ("finished", "run", "thirty boats", metrics["decision"])


def test_a_finished_candidate_is_not_trained_again(cache, tmp_path: Path, monkeypatch):
    config = SETTINGS.model_copy(update={"cap": "auto", "epochs": 1})
    whole, calls = training.train_epoch, []

    def stopping(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(training, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_training(cache, config, tmp_path, "boats")
    assert RunRecord.read(tmp_path).status == "interrupted"
    assert not (tmp_path / "embdelta_adapter.safetensors").exists()
    run_training(cache, config, tmp_path, "boats")
    assert len(calls) == 3 + 2  # four caps, of which two were done
    assert RunRecord.read(tmp_path).status == "finished"
    before = (tmp_path / "embdelta_adapter.safetensors").read_bytes()
    run_training(cache, config, tmp_path, "boats")
    assert len(calls) == 5
    assert (tmp_path / "embdelta_adapter.safetensors").read_bytes() == before


def test_other_settings_or_another_cache_do_not_share_a_folder(finished: Path, cache):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(ConfigError, match="holds a run with other settings; give another --out_dir") as settings:
        run_training(cache, SETTINGS.model_copy(update={"epochs": 3}), finished, "boats")
    with pytest.raises(ConfigError, match="holds a run on another cache; give another --out_dir") as other:
        run_training(cache[slice(0, 29)], SETTINGS, finished, "boats")
    assert "\n" not in f"{settings.value}{other.value}"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_settings_that_cannot_run_do_not_take_the_folder(cache, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"30 pairs with val_frac=0\.95"):
        run_training(cache, SETTINGS.model_copy(update={"val_frac": 0.95}), tmp_path / "run", "boats")
    assert not (tmp_path / "run").exists()
    run_training(cache, SETTINGS, tmp_path / "run", "boats")


def test_a_digest_tells_caches_apart_and_ignores_their_texts(cache):
    assert cache_digest(cache) == cache_digest(PairEmbeddings(cache.base, cache.rewritten))
    assert cache_digest(cache) != cache_digest(PairEmbeddings(cache.rewritten, cache.base))
    assert cache_digest(cache) != cache_digest(cache[slice(1, None)])
