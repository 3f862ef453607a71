"""The embedding store: content is the key, round trips are exact, answers are cached and stay right."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import ConfigError, CorruptFileError, FileError, PromptError, ShapeError
from latentloom.storage import EmbeddingStore
from latentloom.tensors import TextEmbeddings

TABLES = [
    "embedding_analysis",
    "embedding_similarities",
    "embeddings",
    "operation_inputs",
    "operation_parameters",
    "vector_operations",
]


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "embeddings.duckdb", timeout=30)


def normal(*lengths: int, dim: int = 16, dtype: torch.dtype = torch.float16, seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings.from_list([torch.randn(n, dim, generator=generator).to(dtype) for n in lengths])


def same_bits(first: TextEmbeddings, second: TextEmbeddings) -> bool:
    views = [item.tokens.contiguous().view(torch.uint8) for item in (first, second)]
    return first.dtype == second.dtype and torch.equal(*views) and torch.equal(first.lengths, second.lengths)


def test_the_main_schema_has_the_six_tables_of_the_document(store):
    store.put(normal(3), "a", "encoder")
    with duckdb.connect(str(store.path), read_only=True) as connection:
        assert [row[0] for row in connection.execute("SHOW TABLES").fetchall()] == TABLES


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_embeddings_come_back_bit_for_bit(store, dtype):
    given_ = normal(5, 0, 512, 1, dtype=dtype)
    results = store.put_many(given_, ["a", "b", "c", "d"], "encoder")
    stored = store.get_many([result.id for result in results])
    assert all(same_bits(item.embeddings, given_[row]) for row, item in enumerate(stored))
    assert [(result.is_new, result.note) for result in results] == [(True, None)] * 4
    assert [item.entry.num_tokens for item in stored] == [5, 0, 512, 1]
    assert [item.entry.prompt for item in stored] == ["a", "b", "c", "d"]


def test_float32_is_rounded_unless_told_otherwise_and_the_result_says_so(store):
    given_ = normal(4, dtype=torch.float32)
    rounded, kept = store.put(given_, "a", "encoder"), store.put(given_, "a", "encoder", dtype="float32")
    assert (rounded.note, kept.note) == ("rounded from float32 to float16", None)
    assert (rounded.entry.dtype, rounded.entry.source_dtype, kept.entry.dtype) == ("float16", "float32", "float32")
    assert same_bits(store.get(rounded.id).embeddings, given_.to(dtype=torch.float16))
    assert same_bits(store.get(kept.id).embeddings, given_)


def test_padding_has_no_part_in_what_is_stored(store):
    tokens = normal(3)
    padded = tokens.padded(512)
    padded[0, 3:] = 7.0
    first = store.put(tokens, "a", "encoder")
    assert not store.put(TextEmbeddings.from_padded(padded, lengths=[3]), "a", "encoder").is_new
    assert first.entry.true_bytes == 3 * 16 * 2
    assert first.entry.padded_bytes == 512 * 16 * 4


def test_the_same_content_is_one_row_also_within_one_call(store):
    twice = TextEmbeddings.cat([normal(3), normal(3)])
    results = store.put_many(twice, ["a", "a"], "encoder")
    again = store.put(normal(3), "a", "encoder", kind="another word for it")
    assert [result.is_new for result in (*results, again)] == [True, False, False]
    assert {result.id for result in (*results, again)} == {results[0].id}
    assert again.entry == results[0].entry
    assert store.stats().num_embeddings == 1


def test_what_differs_in_any_part_of_the_key_is_kept_apart(store):
    tokens = normal(3)
    results = [
        store.put(tokens, "a", "one encoder"),
        store.put(tokens, "a", "another encoder"),
        store.put(tokens, "b", "one encoder"),
        store.put(tokens.to(dtype=torch.bfloat16), "a", "one encoder"),
        store.put(TextEmbeddings(tokens.tokens.view(6, 8), torch.tensor([6])), "a", "one encoder"),
        store.put(normal(3, seed=1), "a", "one encoder"),
    ]
    assert len({result.id for result in results}) == 6
    assert all(result.is_new for result in results)


@settings(max_examples=12)
@given(
    prompts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=4),
    lengths=st.lists(st.integers(0, 4), min_size=4, max_size=4),
)
def test_any_prompts_and_lengths_come_back(tmp_path_factory, prompts, lengths):
    store = EmbeddingStore(tmp_path_factory.getbasetemp() / "any.duckdb", timeout=30)
    given_ = normal(*lengths[: len(prompts)], dim=4)
    stored = store.get_many([result.id for result in store.put_many(given_, prompts, "encoder")])
    assert [item.entry.prompt for item in stored] == prompts
    assert same_bits(TextEmbeddings.cat([item.embeddings for item in stored]), given_)


def test_a_refused_row_keeps_the_whole_call_out(store):
    spoiled = normal(2, 2)
    spoiled.tokens[3, 0] = float("nan")
    with pytest.raises(PromptError, match="'b'"):
        store.put_many(spoiled, ["a", "b"], "encoder")
    assert not store.path.exists()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.put_many(normal(2, 2), ["a"], "encoder"), ShapeError),
        (lambda store: store.put_many(normal(2, 2), "ab", "encoder"), PromptError),
        (lambda store: store.put(normal(2), "a", " "), ConfigError),
        (lambda store: store.put(normal(2), "a", "encoder", kind=""), ConfigError),
        (lambda store: store.search("a", k=0), ConfigError),
        (lambda store: store.search(normal(2)), ConfigError),
        (lambda store: store.search(normal(2, 2), encoder="e"), ShapeError),
        (lambda store: store.record_operation("add", [], {}, seconds=float("nan")), ConfigError),
        (lambda store: store.clean(), ConfigError),
        (lambda store: store.clean(older_than=timedelta(days=-1)), FileError),
        (lambda store: store.entries(limit=-1), ConfigError),
        (lambda _: EmbeddingStore("x", timeout=-1), ConfigError),
    ],
)
def test_mistakes_are_one_line(store, call, error):
    with pytest.raises(error) as raised:
        call(store)
    assert "\n" not in str(raised.value)


def test_an_id_may_be_given_by_its_beginning(store):
    ids = [result.id for result in store.put_many(normal(*[1] * 40), [str(n) for n in range(40)], "encoder")]
    first = ids[0]
    long_enough = next(n for n in range(1, 33) if sum(other.startswith(first[:n]) for other in ids) == 1)
    assert store.find(first[:long_enough]).id == first
    letter = max("0123456789abcdef", key=lambda letter: sum(name.startswith(letter) for name in ids))
    with pytest.raises(FileError, match=f"several embeddings in .* begin with '{letter}'"):
        store.find(letter)
    for unknown in ("zz", "", "'; DROP TABLE embeddings"):
        with pytest.raises(FileError, match="no embedding"):
            store.get(unknown)


def test_entries_are_filtered_and_newest_first(store):
    store.put(normal(1), "A red circle", "one")
    store.put(normal(2), "a blue square", "two")
    store.put(normal(3), "a green circle", "two", kind="difference")
    assert [entry.num_tokens for entry in store.entries()] == [3, 2, 1]
    assert [entry.num_tokens for entry in store.entries(limit=1)] == [3]
    assert [entry.num_tokens for entry in store.entries(kind="encoded")] == [2, 1]
    assert [entry.num_tokens for entry in store.entries(encoder="two")] == [3, 2]
    assert [entry.num_tokens for entry in store.entries(prompt="CIRCLE", kind="encoded")] == [1]
    assert [entry.num_tokens for entry in store.entries(newer_than=timedelta(hours=1))] == [3, 2, 1]
    assert store.entries(older_than=timedelta(hours=1)) == []
    assert abs(store.entries()[0].created - datetime.now(UTC)) < timedelta(minutes=1)


def test_an_analysis_is_computed_once(store):
    result = store.put(normal(6, dtype=torch.bfloat16), "a", "encoder")
    first = store.analyze(result.id)
    with duckdb.connect(str(store.path)) as connection:
        connection.execute("UPDATE embedding_analysis SET mean = 42")
    assert store.analyze(result.id[:8]).mean == 42
    assert first.norm_mean == pytest.approx(normal(6, dtype=torch.bfloat16).tokens.float().norm(dim=1).mean().item())
    assert 1 < first.effective_dim <= 5
    assert store.stats().num_analyses == 1


class TestSearch:
    @pytest.fixture
    def fan(self, store) -> tuple[EmbeddingStore, list[str]]:
        """Four prompts at 0, 10, 20 and 90 degrees, whose single tokens are not as near as their means."""
        angles = torch.deg2rad(torch.tensor([0.0, 10, 20, 90]))
        means = torch.stack([angles.cos(), angles.sin()], dim=1)
        aside = torch.tensor([[5.0, -3.0], [-5.0, 3.0]])
        prompts = TextEmbeddings.from_list([mean + aside for mean in means])
        return store, [r.id for r in store.put_many(prompts, list("abcd"), "encoder", dtype="float32")]

    def test_the_nearest_come_first_with_the_cosines_of_their_means(self, fan):
        store, ids = fan
        result = store.search(ids[0], k=3)
        assert [match.entry.id for match in result.matches] == ids[1:]
        expected = torch.deg2rad(torch.tensor([10.0, 20, 90])).cos().tolist()
        assert [match.cosine for match in result.matches] == pytest.approx(expected, abs=1e-6)
        assert (result.num_compared, result.cached) == (3, False)

    def test_an_embedding_that_is_not_stored_can_be_the_query(self, fan):
        store, ids = fan
        query = TextEmbeddings.from_list([torch.tensor([[2.0, 0.0]])])
        assert [m.entry.id for m in store.search(query, k=2, encoder="encoder").matches] == ids[:2]
        assert store.search(query, encoder="another").matches == []
        assert store.stats().num_similarities == 0

    def test_an_answer_is_kept_until_an_embedding_comes_or_goes(self, fan):
        store, ids = fan
        first = store.search(ids[0], k=2)
        assert store.search(ids[0], k=2).cached
        assert store.search(ids[0], k=1).matches == first.matches[:1]
        assert not store.search(ids[0], k=3).cached  # it did not go that far
        assert store.search(ids[0], k=50).cached  # and that one went as far as there are any
        near = store.put(TextEmbeddings.from_list([torch.tensor([[1.0, 0.01]])]), "near", "encoder")
        renewed = store.search(ids[0], k=2)
        assert (renewed.cached, renewed.matches[0].entry.id) == (False, near.id)
        store.put(normal(1), "not as wide", "encoder")
        assert store.search(ids[0], k=2).cached
        store.clean(to_bytes=0, kind="encoded", dry_run=True)
        assert store.search(ids[0], k=2).cached

    def test_only_one_encoder_is_compared_unless_asked(self, fan):
        store, ids = fan
        other = store.put(TextEmbeddings.from_list([torch.tensor([[3.0, 0.0]])]), "a", "another encoder")
        assert other.id not in [match.entry.id for match in store.search(ids[0]).matches]
        everywhere = store.search(ids[0], any_encoder=True)
        assert (everywhere.matches[0].entry.id, everywhere.num_compared) == (other.id, 4)
        assert store.search(ids[0]).cached
        assert store.search(ids[0], any_encoder=True).cached

    def test_a_mean_without_a_direction_is_near_to_nothing(self, fan):
        store, ids = fan
        store.put(TextEmbeddings.from_list([torch.zeros(0, 2)]), "empty", "encoder")
        nothing = store.put(TextEmbeddings.from_list([torch.tensor([[1.0, 0], [-1, 0]])]), "nothing", "encoder")
        assert store.search(ids[0]).num_compared == 3
        assert store.search(nothing.id).matches == []


class TestOperations:
    def test_an_operation_comes_back_as_it_was_recorded(self, store):
        a, b, c = (r.id for r in store.put_many(normal(1, 2, 3), list("abc"), "encoder"))
        settings = {"scale": 0.5, "normalize": True, "weights": [1, 2], "method": "größe"}
        assert store.record_operation("difference", [b, a[:10], b], settings, c, seconds=0.25) == 1
        assert store.record_operation("interpolate", [], {}, [a, b]) == 2
        last, first = store.operations()
        assert (first.kind, first.inputs, first.outputs) == ("difference", [b, a, b], [c])
        assert (first.parameters, first.seconds) == (settings, 0.25)
        assert (last.number, last.outputs, last.inputs, last.parameters) == (2, [a, b], [], {})
        assert [each.number for each in store.operations(limit=1)] == [2]
        assert [each.number for each in store.operations(kind="difference")] == [1]
        totals = {total.kind: (total.num_operations, total.seconds) for total in store.stats().operations}
        assert totals == {"difference": (1, 0.25), "interpolate": (1, 0.0)}

    def test_what_cannot_be_recorded_leaves_nothing_behind(self, store):
        a = store.put(normal(1), "a", "encoder").id
        for inputs, parameters, error in [(["zz"], {}, FileError), ([a], {"x": float("nan")}, ConfigError)]:
            with pytest.raises(error) as raised:
                store.record_operation("add", inputs, parameters)
            assert "\n" not in str(raised.value)
        assert store.operations() == []


def test_damaged_tokens_are_told_and_the_others_stay_readable(store):
    first, second = (r.id for r in store.put_many(normal(50, 60), ["a", "b"], "encoder"))
    with duckdb.connect(str(store.path)) as connection:
        row = connection.execute("SELECT tokens FROM embeddings WHERE id = ?", [first]).fetchone()
        assert row is not None
        spoiled = bytearray(row[0])
        spoiled[len(spoiled) // 2] ^= 255
        connection.execute("UPDATE embeddings SET tokens = ? WHERE id = ?", [bytes(spoiled), first])
    with pytest.raises(CorruptFileError, match="damaged"):
        store.get(first)
    with pytest.raises(CorruptFileError, match="damaged"):
        store.export(store.path.parent / "parquet")
    assert len(store.get(second).embeddings.tokens) == 60


def test_results_can_be_written_as_json(store):
    from pydantic_core import to_json

    store.put(normal(2), "a", "encoder")
    assert json.loads(to_json(store.stats()))["num_tokens"] == 2
