"""The database node: what the store holds, what is cleaned, and that others may write meanwhile."""

from pathlib import Path

import duckdb
import pytest
import torch
from comfy_nodes.hosts import BY_ID
from storage.embedding_workers import line_of, start

from latentloom.comfy.execute import execute
from latentloom.comfy.store import open_store
from latentloom.storage import EmbeddingStore
from latentloom.tensors import TextEmbeddings

NODE = BY_ID["WanVideoEmbeddingDatabase"]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddingStore:
    monkeypatch.setenv("LATENTLOOM_STORE", str(tmp_path / "embeddings.duckdb"))
    return open_store()


def report(action: str, days: int = 30, uses: int = 5) -> str:
    inputs = {"action": action, "cleanup_days": days, "cleanup_min_access": uses}
    (text,), messages = execute(NODE, inputs, "7")
    assert messages["text"] == [text]
    return text


def tokens(*lengths: int) -> TextEmbeddings:
    return TextEmbeddings.from_list([torch.full((length, 8), float(length)).half() for length in lengths])


def put(store: EmbeddingStore, **ages: float) -> dict[str, str]:
    """Embeddings by prompt, made so many days ago."""
    results = store.put_many(tokens(*range(1, len(ages) + 1)), list(ages), "encoder")
    with duckdb.connect(str(store.path)) as connection:
        for result, age in zip(results, ages.values(), strict=True):
            connection.execute(
                "UPDATE embeddings SET created = created - to_days(?) WHERE id = ?", [int(age), result.id]
            )
    return {prompt: result.id for prompt, result in zip(ages, results, strict=True)}


def test_without_a_store_every_action_says_where_it_would_be(store):
    for action in ("stats", "cleanup", "list_recent"):
        assert report(action).startswith(f"there is no store yet: {store.path}")
    assert not store.path.exists()


def test_the_store_lies_in_the_user_folder_of_comfyui(comfyui, monkeypatch):
    monkeypatch.delenv("LATENTLOOM_STORE")
    assert open_store().path == comfyui.folder / "user" / "latentloom" / "embeddings.duckdb"


def test_stats_count_embeddings_and_operations(store):
    ids = put(store, a=0, b=0)
    store.record_operation("add", list(ids.values()), {"weights": [1, 2]}, seconds=0.25)
    store.record_operation("add", [], {}, seconds=0.75)
    text = report("stats")
    assert f"{store.path}: 2 embeddings, 3 tokens" in text
    assert "times smaller than padded float32" in text
    assert "2 encoded, encoder, float16" in text
    assert "2 add, 500.0 ms each on average" in text


def test_the_last_come_first_and_operations_say_what_they_did(store):
    ids = put(store, a=0, b=3)
    store.record_operation("difference", [ids["a"]], {"scale": 0.5}, [ids["b"]] * 5, seconds=0.25)
    lines = report("list_recent").splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [ids["a"][:8], ids["b"][:8]]
    assert "used 0 times a" in lines[1]
    some = ", ".join([ids["b"][:8]] * 3)
    assert f"difference({ids['a'][:8]}) -> {some} and 2 more; scale=0.5; 250.0 ms" in lines[-1]


def test_cleanup_removes_what_is_old_and_hardly_used(store):
    ids = put(store, old_unused=40, old_used=40, new_unused=1)
    store.get(ids["old_used"])
    assert "1 embeddings removed (older than 30 days and used fewer than 1 times)" in report("cleanup", 30, 1)
    assert {entry.prompt for entry in store.entries()} == {"old_used", "new_unused"}
    assert "nothing was removed" in report("cleanup", 30, 1)
    assert "1 embeddings removed" in report("cleanup", 30, 2)
    assert {entry.prompt for entry in store.entries()} == {"new_unused"}


def test_it_runs_each_time():
    assert NODE.fingerprint is not None
    inputs = {"action": "stats", "cleanup_days": 30, "cleanup_min_access": 5}
    first, again = NODE.fingerprint(**inputs), NODE.fingerprint(**inputs)
    assert first != again
    assert first is not again  # a value is equal to itself in ComfyUI's keys, whatever it is


def test_every_action_works_while_another_process_writes(store):
    ids = put(store, old=40, also_old=50)
    worker = start("write", store.path, "other", 2, 1000)
    try:
        promised = set(line_of(worker).split())
        assert "2 embeddings removed" in report("cleanup")
        for action, said in (("stats", "on disk"), ("list_recent", "newest first"), ("cleanup", "nothing was removed")):
            assert said in report(action)
            promised |= set(line_of(worker).split())
        assert worker.poll() is None, "it was writing all the time"
    finally:
        worker.kill()
        worker.communicate(timeout=60)
    found = {entry.id for entry in store.entries()}
    assert len(promised) >= 8
    assert promised <= found
    assert found.isdisjoint(ids.values())
