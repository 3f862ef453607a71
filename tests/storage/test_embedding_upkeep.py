"""The store as a whole: honest ratios, cleaning, a file that shrinks, Parquet that others can read."""

from datetime import timedelta
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch

from latentloom.errors import FileError
from latentloom.storage import EmbeddingStore
from latentloom.tensors import TextEmbeddings


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings.duckdb", timeout=30)


def normal(*lengths: int, dim: int = 64, dtype: torch.dtype = torch.float16) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(sum(lengths))
    return TextEmbeddings.from_list([torch.randn(n, dim, generator=generator).to(dtype) for n in lengths])


def put_aged(store: EmbeddingStore, days: dict[int, float], kind: str = "encoded") -> list[str]:
    """One embedding per length, made so many days ago."""
    ids = [store.put(normal(length), f"{length} tokens", "encoder", kind).id for length in days]
    with duckdb.connect(str(store.path)) as connection:
        for embedding_id, age in zip(ids, days.values(), strict=True):
            connection.execute(
                "UPDATE embeddings SET created = created - to_milliseconds(?) WHERE id = ?",
                [round(age * 86400000), embedding_id],
            )
    return ids


def test_both_ratios_are_bytes_before_by_bytes_after(store):
    store.put_many(normal(10, 30, dim=64), ["a", "b"], "encoder")
    store.put_many(normal(600, dim=32, dtype=torch.float32), ["c"], "encoder", "difference", "float32")
    stats = store.stats()
    blobs = sum(entry.stored_bytes for entry in store.entries())
    true_bytes = 40 * 64 * 2 + 600 * 32 * 2
    padded_bytes = 2 * 512 * 64 * 4 + 600 * 32 * 4
    assert (stats.num_embeddings, stats.num_tokens) == (3, 640)
    assert (stats.stored_bytes, stats.true_bytes, stats.padded_bytes) == (blobs, true_bytes, padded_bytes)
    assert stats.ratio_to_padded == pytest.approx(padded_bytes / blobs)
    assert stats.ratio_to_true == pytest.approx(true_bytes / blobs)
    assert stats.file_ratio_to_true == pytest.approx(true_bytes / store.path.stat().st_size)
    assert stats.file_ratio_to_padded == pytest.approx(padded_bytes / store.path.stat().st_size)
    groups = {(group.kind, group.dtype, group.dim): group for group in stats.groups}
    assert set(groups) == {("encoded", "float16", 64), ("difference", "float32", 32)}
    assert groups["encoded", "float16", 64].num_embeddings == 2
    # float32 is not compared with itself: the true tokens count with 16 bits, and the ratio says what that costs
    wide = groups["difference", "float32", 32]
    assert wide.true_bytes / wide.stored_bytes < 0.7


def test_an_empty_store_has_no_ratios(store):
    store.put(normal(1), "a", "encoder")
    store.clean(kind="encoded")
    stats = store.stats()
    assert (stats.num_embeddings, stats.groups) == (0, [])
    assert (stats.ratio_to_padded, stats.ratio_to_true, stats.file_ratio_to_true) == (None, None, None)


class TestClean:
    def test_by_age(self, store):
        ids = put_aged(store, {1: 40, 2: 10, 3: 0})
        removed = store.clean(older_than=timedelta(days=30)).removed
        assert [entry.id for entry in removed] == ids[:1]
        assert {entry.id for entry in store.entries()} == set(ids[1:])

    def test_by_size_and_kind_together(self, store):
        put_aged(store, {200: 0, 2: 0})
        kept = put_aged(store, {201: 0}, kind="difference")
        result = store.clean(larger_than=5000, kind="encoded")
        assert [entry.num_tokens for entry in result.removed] == [200]
        assert result.stored_bytes == result.removed[0].stored_bytes
        assert kept[0] in {entry.id for entry in store.entries()}

    def test_to_a_size_the_oldest_go_first_and_no_more_than_needed(self, store):
        ids = put_aged(store, {100: 1, 101: 3, 102: 2, 103: 0})
        sizes = {entry.id: entry.stored_bytes for entry in store.entries()}
        result = store.clean(to_bytes=sizes[ids[0]] + sizes[ids[3]])
        assert [entry.id for entry in result.removed] == [ids[1], ids[2]]
        assert store.clean(to_bytes=10**9).removed == []
        assert len(store.clean(to_bytes=0, older_than=timedelta(hours=1)).removed) == 1

    def test_a_dry_run_says_the_same_and_removes_nothing(self, store):
        put_aged(store, {1: 40, 2: 10})
        would = store.clean(older_than=timedelta(days=1), dry_run=True)
        assert (len(would.removed), would.dry_run, len(store.entries())) == (2, True, 2)
        assert store.clean(older_than=timedelta(days=1)).removed == would.removed

    def test_cached_answers_go_and_the_record_of_operations_stays(self, store):
        ids = put_aged(store, {5: 2, 6: 0, 7: 0})
        store.analyze(ids[0])
        store.analyze(ids[1])
        store.search(ids[1])
        store.record_operation("add", [ids[0]], {})
        store.clean(older_than=timedelta(days=1))
        stats = store.stats()
        assert (stats.num_analyses, stats.num_similarities) == (1, 1)
        assert store.operations()[0].inputs == [ids[0]]
        with pytest.raises(FileError, match="no embedding"):
            store.get(ids[0])

    def test_what_was_removed_can_be_put_again(self, store):
        first = store.put(normal(4), "a", "encoder")
        store.clean(kind="encoded")
        assert store.put(normal(4), "a", "encoder").is_new
        assert torch.equal(store.get(first.id).embeddings.tokens, normal(4).tokens)


class TestVacuum:
    def test_the_file_shrinks_and_everything_else_is_as_before(self, store, monkeypatch):
        monkeypatch.setattr("latentloom.storage.embedding_upkeep.BATCH_BYTES", 300_000)
        lengths = range(200, 230)
        ids = [
            result.id
            for start in (0, 15)
            for result in store.put_many(
                normal(*lengths[start : start + 15], dim=512), [str(n) for n in range(15)], "encoder"
            )
        ]
        store.analyze(ids[0])
        store.search(ids[0])
        store.record_operation("add", ids[:2], {"scale": 1}, ids[2])
        store.clean(to_bytes=store.stats().stored_bytes // 3)
        before = store.stats()
        entries, operations = store.entries(), store.operations()
        tokens = [item.embeddings.tokens for item in store.get_many([entry.id for entry in entries])]

        sizes = store.vacuum()
        assert sizes.before == before.file_bytes
        assert sizes.after == store.stats().file_bytes < 0.6 * sizes.before
        assert sizes.after < 1.3 * before.stored_bytes + 10**6
        assert (store.entries(), store.operations()) == (entries, operations)
        again = [item.embeddings.tokens for item in store.get_many([entry.id for entry in entries])]
        assert all(torch.equal(one, other) for one, other in zip(tokens, again, strict=True))
        assert store.stats().num_similarities == before.num_similarities
        assert not store.put(TextEmbeddings.from_list([tokens[0]]), entries[0].prompt, "encoder").is_new

    def test_what_a_killed_vacuum_left_does_no_harm(self, store):
        store.put(normal(4), "a", "encoder")
        for call in (store.vacuum, lambda: store.put(normal(5), "b", "encoder"), lambda: store.clean(kind="none")):
            for name in (".vacuum", ".vacuum.wal"):
                Path(f"{store.path}{name}").write_bytes(b"half a copy")
            call()
            assert not Path(f"{store.path}.vacuum").exists()
            assert not Path(f"{store.path}.vacuum.wal").exists()
        assert len(store.entries()) == 2

    def test_what_a_killed_process_left_of_a_new_store_does_no_harm(self, store):
        for name in (".new", ".new.wal"):
            Path(f"{store.path}{name}").write_bytes(b"half a store")
        store.put(normal(4), "a", "encoder")
        assert len(store.entries()) == 1

    def test_a_copy_that_fails_leaves_the_file_as_it_was(self, store):
        store.put(normal(4), "a", "encoder")

        def fail(work: list, description: str) -> list:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.vacuum(fail)
        assert len(store.entries()) == 1
        assert not Path(f"{store.path}.vacuum").exists()

    def test_without_room_nothing_is_begun(self, store, monkeypatch):
        store.put(normal(4), "a", "encoder")
        usage = type("Usage", (), {"free": 10})()
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
        with pytest.raises(FileError, match="10 are free"):
            store.vacuum()


class TestExport:
    def test_other_tools_read_the_tokens_and_means(self, store, tmp_path):
        halves, brains = normal(3, 0, 5, dim=8), normal(4, dim=8, dtype=torch.bfloat16)
        store.put_many(halves, ["a", "b", "größe"], "encoder")
        store.put(brains, "d", "encoder", kind="difference")
        store.record_operation("add", [], {"scale": 1})
        store.export(tmp_path / "parquet")
        files = sorted(file.name for file in (tmp_path / "parquet").iterdir())
        assert len(files) == 6
        rows = duckdb.execute(
            f"SELECT prompt, num_tokens, dim, dtype, tokens, mean_vector FROM '{tmp_path}/parquet/embeddings.parquet' "
            "ORDER BY prompt"
        ).fetchall()
        assert [row[0] for row in rows] == ["a", "b", "d", "größe"]
        read = np.frombuffer(rows[3][4], "<f2").reshape(rows[3][1], rows[3][2])
        assert np.array_equal(read, halves[2].tokens.numpy())
        assert rows[3][5] == pytest.approx(halves[2].tokens.float().mean(dim=0).tolist())
        assert rows[2][3] == "bfloat16"
        bits = np.frombuffer(rows[2][4], "<u2").reshape(4, 8)
        assert np.array_equal(bits, brains.tokens.view(torch.uint16).numpy())
        kinds = duckdb.execute(f"SELECT kind FROM '{tmp_path}/parquet/vector_operations.parquet'").fetchall()
        assert kinds == [("add",)]

    def test_tokens_can_be_left_out_and_an_earlier_export_is_replaced(self, store, tmp_path):
        store.put(normal(3), "a", "encoder")
        store.export(tmp_path / "parquet")
        store.export(tmp_path / "parquet", tokens=False)
        columns = duckdb.execute(f"DESCRIBE SELECT * FROM '{tmp_path}/parquet/embeddings.parquet'").fetchall()
        assert "tokens" not in [column[0] for column in columns]

    def test_a_folder_with_anything_else_in_it_is_left_alone(self, store, tmp_path):
        store.put(normal(3), "a", "encoder")
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
            with pytest.raises(FileError) as raised:
                store.export(place)
            assert "\n" not in str(raised.value)
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
