"""What the tests of the embedding store run in processes of their own; each line printed is a promise kept on disk.

python embedding_workers.py write PATH NAME NUM_THREADS NUM_CALLS
python embedding_workers.py hold PATH
python embedding_workers.py die PATH WHEN
"""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latentloom.storage import EmbeddingStore, embedding_file
from latentloom.storage.store_lock import StoreLock

if TYPE_CHECKING:  # the workers that write no tokens start without torch
    from latentloom.tensors import TextEmbeddings

TIMEOUT = 120.0


def tokens_of(prompt: str) -> "TextEmbeddings":
    """Tokens that follow from the prompt, for whoever reads them back; large enough to be committed past the log."""
    import torch

    from latentloom.tensors import TextEmbeddings

    generator = torch.Generator().manual_seed(sum(prompt.encode()) + 1000 * len(prompt))
    return TextEmbeddings.from_list([torch.randn(200, 512, generator=generator).half()])


def start(*arguments: object) -> subprocess.Popen[str]:
    """A worker process."""
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def line_of(worker: subprocess.Popen[str]) -> str:
    """The next line that a worker prints."""
    assert worker.stdout is not None
    return worker.stdout.readline()


def write(path: str, name: str, num_threads: str, num_calls: str) -> None:
    """Threads that put pairs, read back what any of them put, and print the ids of each call that returned."""
    import torch

    from latentloom.tensors import TextEmbeddings

    failures: list[BaseException] = []

    def work(thread: int) -> None:
        store = EmbeddingStore(path, TIMEOUT)
        try:
            for call in range(int(num_calls)):
                prompts = [f"{name} {thread} {call} {side}" for side in "ab"]
                both = TextEmbeddings.cat([tokens_of(prompt) for prompt in prompts])
                ids = [result.id for result in store.put_many(both, prompts, "encoder")]
                os.write(1, f"{' '.join(ids)}\n".encode())  # at once and whole, also between threads
                if call % 2:
                    newest = store.entries(limit=1)[0]
                    found = store.get(newest.id)
                    assert torch.equal(found.embeddings.tokens, tokens_of(found.entry.prompt).tokens)
                    store.record_operation("add", ids, {"call": call}, seconds=0.5)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(int(num_threads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(1 if failures else 0)


def hold(path: str) -> None:
    """Holds the lock, says so, and keeps it."""
    with StoreLock(Path(path), TIMEOUT).hold():
        print("held", flush=True)
        time.sleep(TIMEOUT)


def hammer(path: str) -> None:
    """Takes the lock again as soon as it has given it back, and counts in a file how often it had it."""
    print("held", flush=True)
    while True:
        with StoreLock(Path(path), TIMEOUT).hold(), Path(f"{path}.turns").open("a") as turns:
            turns.write(".")
            time.sleep(0.1)


def die(path: str, when: str) -> None:
    """Killed at once, with a transaction that is open, or that is committed and only in the log."""
    real_connect = embedding_file.connect

    @contextmanager
    def connect(*arguments, **settings):
        with real_connect(*arguments, **settings) as connection:
            if when == "committed":
                connection.execute("SET checkpoint_threshold = '1GB'")
            yield connection
            if when == "committed":
                assert Path(f"{path}.wal").stat().st_size > 0
                os.kill(os.getpid(), signal.SIGKILL)

    embedding_file.connect = connect
    store = EmbeddingStore(path, TIMEOUT)
    if when == "open":
        with store._file.changing() as connection:
            connection.begin()
            connection.execute("DELETE FROM embeddings")
            os.kill(os.getpid(), signal.SIGKILL)
    store.record_operation("add", [], {"scale": 0.5}, seconds=2.0)


if __name__ == "__main__":
    {"write": write, "hold": hold, "hammer": hammer, "die": die}[sys.argv[1]](*sys.argv[2:])
