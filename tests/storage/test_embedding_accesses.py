"""How often a stored embedding was used: counted by reading it and by putting it again, and a reason to keep it."""

from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
import torch
from storage.embedding_workers import start

from latentloom.errors import CorruptFileError
from latentloom.storage import EmbeddingStore, embedding_schema
from latentloom.tensors import TextEmbeddings


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings.duckdb", timeout=30)


def normal(*lengths: int) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(sum(lengths))
    return TextEmbeddings.from_list([torch.randn(n, 16, generator=generator).half() for n in lengths])


def make_version_1(path: Path) -> None:
    """The store as it was before accesses were counted."""
    with duckdb.connect(str(path)) as connection:
        connection.execute("ALTER TABLE embeddings DROP COLUMN num_accesses")
        connection.execute("UPDATE latentloom.store_version SET version = 1")


def accesses(store: EmbeddingStore) -> dict[str, int]:
    return {entry.prompt: entry.num_accesses for entry in store.entries()}


def test_reading_and_putting_again_count_and_looking_does_not(store):
    a, b = (result.id for result in store.put_many(normal(3, 4), ["a", "b"], "encoder"))
    assert accesses(store) == {"a": 0, "b": 0}
    store.get(a)
    store.get_many([a, b, a])  # one call
    store.put(normal(3, 4)[:1], "a", "encoder")
    store.find(a)
    store.analyze(a)
    store.search(a)
    store.record_operation("add", [a], {})
    assert accesses(store) == {"a": 3, "b": 1}
    assert store.get(b).entry.num_accesses == 1  # before this one


def test_content_that_comes_twice_in_its_first_call_was_not_there_before(store):
    store.put_many(normal(3)[[0, 0]], ["a", "a"], "encoder")
    assert accesses(store) == {"a": 0}


def test_a_damaged_embedding_counts_nothing(store):
    result = store.put(normal(50), "a", "encoder")
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE embeddings SET tokens = '\\x00'::BLOB")
    with pytest.raises(CorruptFileError):
        store.get(result.id)
    assert accesses(store) == {"a": 0}


def test_cleaning_spares_what_is_used(store):
    used, _, _ = (result.id for result in store.put_many(normal(2, 3, 4), ["used", "once", "never"], "encoder"))
    for _ in range(2):
        store.get(used)
    store.get(store.entries(prompt="once")[0].id)
    assert {entry.prompt for entry in store.clean(accessed_fewer_than=2, dry_run=True).removed} == {"once", "never"}
    assert store.clean(accessed_fewer_than=2, older_than=timedelta(days=1)).removed == []
    assert [entry.prompt for entry in store.clean(accessed_fewer_than=1).removed] == ["never"]
    assert accesses(store) == {"used": 2, "once": 1}


def test_the_count_outlives_a_vacuum(store):
    store.get(store.put(normal(3), "a", "encoder").id)
    store.vacuum()
    assert accesses(store) == {"a": 1}


def test_a_store_of_version_1_is_brought_up_by_whatever_opens_it(store):
    result = store.put(normal(5), "a", "encoder")
    for use in (store.stats, store.vacuum, lambda: store.put(normal(6), "b", "encoder"), lambda: store.get(result.id)):
        make_version_1(store.path)
        use()
        with duckdb.connect(str(store.path), read_only=True) as connection:
            assert connection.execute("SELECT version FROM latentloom.store_version").fetchall() == [(2,)]
        assert torch.equal(store.get(result.id).embeddings.tokens, normal(5).tokens)
    assert accesses(store) == {"a": 2, "b": 0}


def test_an_upgrade_that_is_cut_short_never_happened(store, monkeypatch):
    store.put(normal(5), "a", "encoder")
    make_version_1(store.path)
    monkeypatch.setitem(embedding_schema.UPGRADES, 1, f"{embedding_schema.UPGRADES[1]}; SELECT error('cut')")
    with pytest.raises(duckdb.InvalidInputException, match="cut"):
        store.stats()
    monkeypatch.undo()
    assert accesses(store) == {"a": 0}


def test_two_processes_that_find_version_1_upgrade_it_once(store):
    store.put(normal(5), "a", "encoder")
    make_version_1(store.path)
    workers = [start("write", store.path, name, 1, 1) for name in ("first", "second")]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert (worker.returncode, errors) == (0, "")
    assert len(accesses(store)) == 5
