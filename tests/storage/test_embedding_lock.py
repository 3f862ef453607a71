"""Whoever waits for the store gets it in turn, or learns for whom it waited."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from storage.embedding_workers import line_of, start, tokens_of

from latentloom.errors import FileError
from latentloom.storage import EmbeddingStore
from latentloom.storage.store_lock import StoreLock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "embeddings.duckdb"


def test_who_waits_too_long_learns_who_has_the_file_since_when(path):
    EmbeddingStore(path).put(tokens_of("a"), "a", "encoder")
    holder = start("hold", path)
    assert line_of(holder) == "held\n"
    store = EmbeddingStore(path, timeout=0.3)
    for call in (store.stats, lambda: store.put(tokens_of("b"), "b", "encoder")):
        begun = time.monotonic()
        with pytest.raises(FileError) as raised:
            call()
        assert 0.3 <= time.monotonic() - begun < 5
        message = str(raised.value)
        assert f"process {holder.pid} (embedding_workers.py hold " in message
        assert "since 20" in message
        assert "waited 0.3 s" in message
        assert "\n" not in message
    holder.kill()
    holder.communicate()
    assert store.stats().num_embeddings == 1  # the lock ended with its process


def test_threads_of_one_process_wait_for_each_other_too(path):
    EmbeddingStore(path).put(tokens_of("a"), "a", "encoder")
    release, held = threading.Event(), threading.Event()

    def hold() -> None:
        with StoreLock(path, 10).hold():
            held.set()
            release.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    with pytest.raises(FileError, match=f"process {os.getpid()} "):
        EmbeddingStore(path, timeout=0.1).stats()
    release.set()
    assert EmbeddingStore(path, timeout=30).stats().num_embeddings == 1
    holder.join()


def test_a_process_that_comes_back_at_once_does_not_keep_others_out(path):
    workers = [start("hammer", path) for _ in range(2)]
    assert [line_of(worker) for worker in workers] == ["held\n"] * 2
    turns = Path(f"{path}.turns")
    turns.touch()
    turns_waited = 0
    for _ in range(4):
        time.sleep(0.15)
        before = turns.stat().st_size
        with StoreLock(path, 60).hold():
            turns_waited += turns.stat().st_size - before
    for worker in workers:
        worker.kill()
        worker.communicate()
    assert turns_waited < 30  # measured: 4 to 8; 27 for each of the four where nobody stands in line


def test_an_error_inside_gives_the_lock_back(path):
    store = EmbeddingStore(path, timeout=5)
    store.put(tokens_of("a"), "a", "encoder")
    for _ in range(2):
        with pytest.raises(FileError):
            store.get("zz")
    assert not Path(f"{path}.holder.json").exists()
    assert store.stats().num_embeddings == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_takes_part(path):
    EmbeddingStore(path).put(tokens_of("a"), "a", "encoder")
    program = (
        "import os\n"
        "from latentloom.storage import EmbeddingStore\n"
        f"store = EmbeddingStore({str(path)!r}, timeout=20)\n"
        "store.stats()\n"
        "child = os.fork()\n"
        "for call in range(5):\n"
        "    store.record_operation('add', [], {'call': call})\n"
        "if child:\n"
        "    assert os.waitpid(child, 0)[1] == 0\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
    assert len(EmbeddingStore(path).operations()) == 10
