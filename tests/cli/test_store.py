"""`latentloom store`: files in and out, tables and JSON, one line for every mistake."""

import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import torch

from latentloom.cli.main import run
from latentloom.cli.store_options import parse_age, parse_bytes
from latentloom.errors import ConfigError
from latentloom.storage import EmbeddingStore, load_object, save_object
from latentloom.storage.byte_sizes import in_words
from latentloom.storage.modules import read_origin
from latentloom.tensors import TextEmbeddings

ENCODER = "0123456789abcdef"
CIRCLE, SQUARE = "A red circle.", "A blue square moves to the left."


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the store lies, by the environment."""
    path = tmp_path / "store" / "embeddings.duckdb"
    monkeypatch.setenv("LATENTLOOM_STORE", str(path))
    monkeypatch.setenv("COLUMNS", "160")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """What `latentloom embed` writes for two prompts."""
    return save(tmp_path / "prompts.safetensors", prompts=[CIRCLE, SQUARE])


def normal(*lengths: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings.from_list([torch.randn(n, 32, generator=generator).to(dtype) for n in lengths])


def save(path: Path, embeddings: TextEmbeddings | None = None, **record: object) -> Path:
    save_object(path, normal(3, 7) if embeddings is None else embeddings, {"encoder": ENCODER, **record})
    return path


def asked(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    """The JSON of `latentloom store …`."""
    assert run(["store", *map(str, arguments), "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `latentloom store …` prints."""
    assert run(["store", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that `latentloom store …` is refused with."""
    assert run(["store", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


def test_a_file_put_and_got_again_is_the_same_bit_for_bit(db, file, tmp_path, capsys):
    ids = [entry["id"] for entry in asked(capsys, "put", file)["embeddings"]]
    assert db.exists()
    got = asked(capsys, "get", *ids, "--out", tmp_path / "got.safetensors")
    assert got["prompts"] == [CIRCLE, SQUARE]
    assert got["lengths"] == [3, 7]
    before, after = (load_object(path, TextEmbeddings) for path in (file, tmp_path / "got.safetensors"))
    assert (before.dtype, after.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(before.tokens, after.tokens)
    record = read_origin(tmp_path / "got.safetensors").record
    assert record is not None
    assert (record["encoder"], record["ids"]) == (ENCODER, ids)


def test_putting_says_what_is_new_what_was_there_and_what_was_rounded(db, tmp_path, capsys):
    file = save(tmp_path / "a.safetensors", normal(3, 7, dtype=torch.float32), prompts=[CIRCLE, SQUARE])
    first = said(capsys, "put", file)
    assert f"{db}: 2 new;" in first
    assert "2 rounded from float32 to float16" in first
    assert "0 new, 2 were there already" in said(capsys, "put", file)
    assert [entry["dtype"] for entry in asked(capsys, "put", file, "--dtype", "float32")["embeddings"]] == [
        "float32"
    ] * 2


def test_stats_state_both_ratios_of_tokens_and_file(db, file, capsys):
    asked(capsys, "put", file)
    measured = asked(capsys, "stats")
    assert measured["ratio_to_padded"] == pytest.approx(2 * 512 * 32 * 4 / measured["stored_bytes"])
    assert measured["ratio_to_true"] == pytest.approx(10 * 32 * 2 / measured["stored_bytes"])
    assert measured["file_bytes"] == db.stat().st_size
    assert [group["encoder"] for group in measured["groups"]] == [ENCODER]
    table = said(capsys, "stats")
    assert f"{measured['ratio_to_padded']:.2f}x smaller than [512, D] in float32 with its padding" in table
    assert f"{measured['ratio_to_true']:.2f}x smaller than the true tokens in 16 bits" in table


def test_list_prints_ids_that_show_takes(db, file, capsys):
    asked(capsys, "put", file)
    lines = said(capsys, "list").splitlines()
    assert len(lines) == 3
    assert SQUARE in lines[1] or SQUARE in lines[2]
    shown = asked(capsys, "show", lines[1].split()[0])
    assert shown["prompt"] in (CIRCLE, SQUARE)
    assert shown["analysis"]["effective_dim"] > 1
    assert "effective_dim" in said(capsys, "show", shown["id"])


def test_list_filters(db, file, tmp_path, capsys):
    asked(capsys, "put", file)
    asked(capsys, "put", save(tmp_path / "c.safetensors", normal(4, seed=1), prompts=["green"]), "--kind", "difference")
    assert len(asked(capsys, "list")["embeddings"]) == 3
    assert [entry["prompt"] for entry in asked(capsys, "list", "--kind", "difference")["embeddings"]] == ["green"]
    assert [entry["prompt"] for entry in asked(capsys, "list", "--prompt", "SQUARE")["embeddings"]] == [SQUARE]
    assert len(asked(capsys, "list", "--limit", 1)["embeddings"]) == 1
    assert asked(capsys, "list", "--older-than", "1h")["embeddings"] == []
    assert len(asked(capsys, "list", "--newer-than", "1h", "--encoder", ENCODER)["embeddings"]) == 3
    assert "no such embeddings" in said(capsys, "list", "--kind", "none")


def test_search_takes_an_id_or_a_row_of_a_file(db, file, capsys):
    ids = [entry["id"] for entry in asked(capsys, "put", file)["embeddings"]]
    by_id = asked(capsys, "search", ids[0][:12])
    assert [match["id"] for match in by_id["matches"]] == ids[1:]
    assert asked(capsys, "search", ids[0])["cached"]
    by_file = asked(capsys, "search", file, "--row", 1, "--k", 1)
    assert by_file["matches"][0]["id"] == ids[1]
    assert by_file["matches"][0]["cosine"] == pytest.approx(1)
    assert "cosine" in said(capsys, "search", file)


def test_a_file_of_an_operation_is_stored_with_its_kind_parameters_and_operands(db, file, tmp_path, capsys):
    operand = {"file": str(file), "encoder": ENCODER, "prompts": [CIRCLE, SQUARE]}
    made = {"operation": "difference", "parameters": {"scale": 2.0}, "operands": [operand]}
    result = save(tmp_path / "d.safetensors", normal(5, seed=2), **made)
    rows = asked(capsys, "put", result, "--operands")["embeddings"]
    assert [row["kind"] for row in rows] == ["encoded", "encoded", "difference"]
    assert rows[2]["prompt"] == f"difference({CIRCLE} | {SQUARE})"
    asked(capsys, "put", result)  # which is no second operation
    recorded = asked(capsys, "operations")["operations"]
    assert len(recorded) == 1
    assert (recorded[0]["kind"], recorded[0]["parameters"]["scale"]) == ("difference", 2.0)
    assert recorded[0]["inputs"] == [row["id"] for row in rows[:2]]
    assert recorded[0]["outputs"] == [rows[2]["id"]]
    assert "difference" in said(capsys, "operations")
    save(file, normal(2, 2), prompts=["other", "texts"])
    assert "no longer the operand" in refused(capsys, "put", result, "--operands")


def test_clean_vacuum_and_export(db, file, tmp_path, capsys):
    asked(capsys, "put", file)
    with duckdb.connect(str(db)) as connection:
        connection.execute("UPDATE embeddings SET created = created - INTERVAL 40 DAY WHERE num_tokens = 3")
    assert "1 embeddings" in said(capsys, "clean", "--older-than", "30d", "--dry-run")
    assert [entry["prompt"] for entry in asked(capsys, "clean", "--older-than", "30d")["removed"]] == [CIRCLE]
    assert asked(capsys, "clean", "--larger-than", "1MB", "--kind", "encoded")["removed"] == []
    (kept,) = asked(capsys, "list")["embeddings"]
    said(capsys, "get", kept["id"], "--out", tmp_path / "kept.safetensors")
    assert asked(capsys, "clean", "--accessed-fewer-than", "1")["removed"] == []
    sizes = asked(capsys, "vacuum")
    assert sizes["after"] == db.stat().st_size
    exported = asked(capsys, "export", tmp_path / "parquet")
    assert sum(size > 0 for size in exported["bytes"].values()) == 6
    row = duckdb.execute(f"SELECT prompt FROM '{tmp_path}/parquet/embeddings.parquet'").fetchall()
    assert row == [(SQUARE,)]
    assert "embeddings.parquet" in said(capsys, "export", tmp_path / "parquet", "--no-tokens")
    assert [entry["prompt"] for entry in asked(capsys, "clean", "--to-size", "0")["removed"]] == [SQUARE]


class TestMistakes:
    @pytest.fixture
    def stored(self, db, file, capsys) -> list[str]:
        return [entry["id"] for entry in asked(capsys, "put", file)["embeddings"]]

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (["show", "zz"], "no embedding 'zz'"),
            (["get", "zz"], "no embedding 'zz'"),
            (["search", "zz"], "no embedding 'zz'"),
            (["search", "{file}", "--row", "2"], "--row 2 is none of them"),
            (["search", "{file}", "--k", "0"], "--k"),
            (["list", "--older-than", "yesterday"], "--older-than 'yesterday' is no age"),
            (["list", "--newer-than", "999999999w"], "is no age"),
            (["list", "--older-than", "900000d"], "an age of 900000 days"),
            (["list", "--limit", "0"], "--limit"),
            (["clean"], "nothing says what to remove"),
            (["clean", "--larger-than", "much"], "--larger-than 'much' is no size"),
            (["clean", "--to-size", "-5"], "is no size"),
            (["put", "{folder}/none.safetensors"], "does not exist"),
            (["put", "{folder}/foreign.safetensors"], "does not say which encoder"),
            (["put", "{folder}/short.safetensors"], "does not say which prompts"),
            (["put", "{file}", "--dtype", "int8"], "int8"),
            (["put", "{file}", "--kind", " "], "kind=' ' names nothing"),
            (["export", "{folder}"], "holds other files"),
            (["stats", "--db", "{file}"], "is no embedding store, or is damaged"),
            (["stats", "--db", "{folder}"], "is a folder"),
            (["vacuum", "--db", "{folder}/none.duckdb"], "does not exist"),
            (["stats", "--wait", "-1"], "--wait"),
        ],
    )
    def test_a_mistake_is_one_line(self, stored, file, tmp_path, capsys, arguments, part):
        save_object(tmp_path / "foreign.safetensors", normal(1))
        save(tmp_path / "short.safetensors", prompts=["only one"])
        filled = [argument.format(file=file, folder=tmp_path) for argument in arguments]
        assert part in refused(capsys, *filled)

    def test_embeddings_that_do_not_belong_together_are_not_written_into_one_file(self, stored, db, capsys):
        other = EmbeddingStore(db).put(normal(2), "a", "another encoder").id
        assert "differ in encoder" in refused(capsys, "get", stored[0], other)

    def test_nan_is_refused_and_nothing_is_stored(self, db, tmp_path, capsys):
        spoiled = normal(2, 2)
        spoiled.tokens[3, 0] = float("nan")
        file = save(tmp_path / "nan.safetensors", spoiled, prompts=["a", "b"])
        assert "not finite" in refused(capsys, "put", file)
        assert not db.exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("12h", 43200), ("30D", 2592000), ("2w", 1209600), (None, None)]
)
def test_ages(text, seconds):
    age = parse_age(text, "--older-than")
    assert (None if age is None else age.total_seconds()) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("1kB", 1000), ("1.5 MB", 1500000), ("2GiB", 2**31), ("0", 0), (None, None)],
)
def test_sizes(text, size):
    assert parse_bytes(text, "--to-size") == size


@pytest.mark.parametrize("text", ["", "d", "-3d", "3 fortnights", "1e9d", "nan"])
def test_other_words_are_no_age(text):
    with pytest.raises(ConfigError):
        parse_age(text, "--older-than")


def test_sizes_in_words():
    assert [in_words(size) for size in (0, 999, 1000, 2_150_000, 3 * 10**15)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "2.1 MB",
        "3000.0 TB",
    ]


def test_asking_needs_no_torch(db, file, tmp_path, capsys):
    asked(capsys, "put", file)
    lines = [["store", verb, "--json", str(tmp_path / "out.json")] for verb in ("stats", "list", "operations")]
    program = (
        "import sys\n"
        "from latentloom.cli.main import run\n"
        f"assert [run(line) for line in {lines!r}] == [0, 0, 0]\n"
        "assert not {'torch', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
