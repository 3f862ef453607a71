"""Files that are no store, stores of other versions, places that cannot be written, and where the default lies."""

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
import torch

from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.storage import EmbeddingStore
from latentloom.storage.embedding_file import default_path
from latentloom.tensors import TextEmbeddings

TOKENS = TextEmbeddings.from_list([torch.ones(2, 4)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "embeddings.duckdb"


def refusal(call) -> str:
    """The one line that a call is refused with."""
    with pytest.raises(FileError) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_reading_a_store_that_is_not_there_makes_nothing(path):
    store = EmbeddingStore(path)
    calls = [store.stats, store.entries, store.vacuum, store.operations]
    calls += [lambda: store.get("a"), lambda: store.clean(kind="x"), lambda: store.export(path.parent / "out")]
    for call in calls:
        assert "does not exist" in refusal(call)
    assert list(path.parent.iterdir()) == []
    assert "is a folder" in refusal(EmbeddingStore(path.parent).stats)


@pytest.mark.parametrize("content", [b"", b"prompt,tokens\n", os.urandom(50_000)], ids=["empty", "text", "noise"])
def test_a_file_of_another_kind_is_refused_and_kept(path, content):
    path.write_bytes(content)
    store = EmbeddingStore(path)
    for call in (store.stats, lambda: store.put(TOKENS, "a", "encoder")):
        assert str(path) in refusal(call)
    assert path.read_bytes() == content


def test_a_database_of_another_program_is_refused_and_kept(path):
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE embeddings (id INTEGER)")
    for call in (EmbeddingStore(path).stats, lambda: EmbeddingStore(path).put(TOKENS, "a", "encoder")):
        assert "another program" in refusal(call)


@pytest.mark.parametrize("version", [0, 99])
def test_another_version_is_told_with_what_wrote_it(path, version):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    with duckdb.connect(str(path)) as connection:
        connection.execute("UPDATE latentloom.store_version SET version = ?, written_by = 'latentloom 7.1'", [version])
    line = refusal(EmbeddingStore(path).stats)
    assert f"version {version} (by latentloom 7.1)" in line
    assert "reads version 2" in line


def test_a_missing_table_is_damage(path):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE embedding_analysis")
    assert "no table embedding_analysis" in refusal(EmbeddingStore(path).stats)


def test_a_damaged_block_is_told(path):
    store = EmbeddingStore(path)
    tokens = torch.randn(400, 128, generator=torch.Generator().manual_seed(0)).half()
    name = store.put(TextEmbeddings.from_list([tokens]), "a", "encoder").id
    content = bytearray(path.read_bytes())
    for place in range(12288 + 1000, len(content), 2000):  # behind the headers
        content[place] ^= 255
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as raised:
        store.get(name)
    assert "\n" not in str(raised.value)


def test_a_cut_file_is_told(path):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    refusal(lambda: EmbeddingStore(path).get("a"))


def test_places_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "store.duckdb", Path("/proc/store.duckdb"), Path("/proc/none/store.duckdb")):
        refusal(lambda place=place: EmbeddingStore(place).put(TOKENS, "a", "encoder"))


def test_missing_folders_are_made_and_quotes_in_names_do_no_harm(tmp_path):
    store = EmbeddingStore(tmp_path / "it's" / 'a "new" folder; --' / "größe.duckdb")
    store.put(TOKENS, "a", "encoder")
    store.vacuum()
    store.export(tmp_path / "it's" / "exported")
    assert store.stats().num_embeddings == 1


def test_links_to_one_store_are_one_store(path, tmp_path):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    link = tmp_path / "link.duckdb"
    link.symlink_to(path)
    EmbeddingStore(link).vacuum()
    assert link.is_symlink()
    assert EmbeddingStore(link).path == path.resolve()
    assert EmbeddingStore(path).stats().num_embeddings == 1


def test_texts_that_are_not_unicode_are_told(path):
    store = EmbeddingStore(path)
    store.put(TOKENS, "a", "encoder")
    for call in (
        lambda: store.get("\udcff"),
        lambda: store.entries(prompt="\udcff"),
        lambda: store.put(TOKENS, "b", "encoder", kind="\udcff"),
    ):
        with pytest.raises(ConfigError, match="not valid Unicode"):
            call()
    assert store.stats().num_embeddings == 1


def test_a_file_that_another_program_has_open_is_waited_for_and_then_told(path):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    program = (
        "import duckdb, sys\n"
        f"connection = duckdb.connect({str(path)!r})\n"
        "print('open', flush=True)\n"
        "sys.stdin.readline()\n"
        "connection.close()\n"
        "print('closed', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        line = refusal(EmbeddingStore(path, timeout=0.2).stats)
        assert "open in another program" in line
        assert str(other.pid) in line
        other.stdin.write("\n")
        other.stdin.flush()
        assert EmbeddingStore(path, timeout=30).stats().num_embeddings == 1
        other.stdin.write("\n")
        other.stdin.flush()


def test_the_default_lies_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("LATENTLOOM_STORE", raising=False)
    assert default_path() == tmp_path / ".local" / "share" / "latentloom" / "embeddings.duckdb"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_path() == tmp_path / "data" / "latentloom" / "embeddings.duckdb"
    monkeypatch.setenv("LATENTLOOM_STORE", "~/mine.duckdb")
    assert EmbeddingStore().path == tmp_path / "mine.duckdb"


def test_what_handles_no_tokens_needs_no_torch(path, tmp_path):
    EmbeddingStore(path).put(TOKENS, "a", "encoder")
    program = (
        "import sys\n"
        "from latentloom.storage import EmbeddingStore\n"
        f"store = EmbeddingStore({str(path)!r})\n"
        f"store.stats(), store.entries(), store.operations(), store.vacuum(), store.export({str(tmp_path / 'out')!r})\n"
        "store.search(store.entries()[0].id), store.clean(kind='x')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
