"""Threads and processes share one store; no row is lost, not even to kill -9."""

import signal
from pathlib import Path

import pytest
import torch
from storage.embedding_workers import line_of, start, tokens_of

from latentloom.storage import EmbeddingStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "embeddings.duckdb"


def assert_whole(store: EmbeddingStore, promised: set[str]) -> None:
    """Every promised row is there and reads as it was written; rows came in pairs or not at all."""
    entries = {entry.id: entry for entry in store.entries()}
    assert promised <= set(entries)
    for item in store.get_many(list(entries)):
        assert torch.equal(item.embeddings.tokens, tokens_of(item.entry.prompt).tokens)
    calls = [entry.prompt.rpartition(" ")[0] for entry in entries.values()]
    assert all(calls.count(call) == 2 for call in calls)


def test_two_processes_with_four_threads_each_lose_nothing(path):
    workers = [start("write", path, name, 4, 2) for name in ("first", "second")]
    outputs = [worker.communicate(timeout=100) for worker in workers]
    assert [(worker.returncode, errors) for worker, (_, errors) in zip(workers, outputs, strict=True)] == [(0, "")] * 2
    promised = {name for out, _ in outputs for name in out.split()}
    store = EmbeddingStore(path)
    assert len(promised) == 2 * 4 * 2 * 2 == store.stats().num_embeddings
    assert_whole(store, promised)
    operations = store.operations(limit=100)
    assert [each.number for each in operations] == list(range(8, 0, -1))
    assert store.stats().operations[0].seconds == 4.0


def test_a_killed_writer_loses_at_most_the_call_it_was_in(path):
    steady = start("write", path, "steady", 2, 3)
    promised: set[str] = set()
    killed = start("write", path, "killed", 2, 1000)
    promised |= {name for _ in range(3) for name in line_of(killed).split()}
    killed.send_signal(signal.SIGKILL)
    out, _ = killed.communicate(timeout=60)
    promised |= {name for pair in out.splitlines() if len(pair) == 65 for name in pair.split()}
    out, errors = steady.communicate(timeout=100)
    assert (steady.returncode, errors) == (0, "")
    promised |= set(out.split())
    assert len(promised) >= 2 * (3 + 2 * 3)
    assert_whole(EmbeddingStore(path, timeout=10), promised)


def test_a_transaction_that_was_open_when_its_process_was_killed_never_happened(path):
    store = EmbeddingStore(path, timeout=10)
    kept = store.put(tokens_of("a"), "a", "encoder")
    worker = start("die", path, "open")
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    assert [entry.id for entry in store.entries()] == [kept.id]


def test_a_commit_that_only_the_log_has_is_replayed(path):
    store = EmbeddingStore(path, timeout=10)
    store.put(tokens_of("a"), "a", "encoder")
    worker = start("die", path, "committed")
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL
    log = Path(f"{path}.wal")
    assert log.exists()
    assert store.operations()[0].parameters == {"scale": 0.5}  # a reader replays it for itself
    store.vacuum()  # which must not leave the log beside a file that it does not belong to
    assert not log.exists()
    assert store.operations()[0].seconds == 2.0
    assert len(store.entries()) == 1
