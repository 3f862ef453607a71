"""One set of cached tensors: what is there already, what is added, and how it is read."""

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from datasets import Features, Value

from latentloom.finetune.cache.ranks import Ranks
from latentloom.finetune.cache.shards import ShardReader, ShardWriter, find_places, read_table, write_table
from latentloom.runs import track

INDEX = Features({"key": Value("string"), "shard": Value("string"), "row": Value("int64")})


class EntrySet:
    """The latents of one VAE, or the embeddings of one encoder, of one folder of media.

    Args:
        folder: where the shards and their index are.
        ranks: the processes that share the work.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder = folder
        self.places: dict[str, tuple[str, int]] = {}
        self.num_computed = 0
        self._ranks = ranks
        self._damaged: list[Path] = []
        self._indexed: dict[str, tuple[str, int]] | None = None

    @property
    def index(self) -> Path:
        return self.folder / "index.arrow"

    def find(self, trust: bool) -> None:
        """Learn what is there: from the index alone if it is trusted, otherwise by checking every shard."""
        self._indexed = self._ranks.first(self._read_index)
        if trust and self._indexed is not None:
            self.places = dict(self._indexed)
            return
        paths = self._ranks.first(lambda: sorted(self.folder.glob("shard-*.arrow")))

        def check_share() -> tuple[dict[str, tuple[str, int]], list[Path]]:
            mine = self._ranks.share(paths)
            return find_places(track(mine, "checking the cache") if mine else ())

        for places, damaged in self._ranks.all(check_share):
            # the same entry may lie in two shards; which one is read does not depend on the number of processes
            self.places |= {key: min(place, self.places.get(key, place)) for key, place in places.items()}
            self._damaged += damaged

    def missing(self, keys: Collection[str]) -> list[str]:
        return [key for key in keys if key not in self.places]

    def add(self, fill: Callable[[ShardWriter], None]) -> None:
        """Let every process write its share of new entries; what is finished is found again if this is interrupted.

        Raises:
            FileError: the folder cannot be written to.
        """
        self._ranks.first(self._remove_remains)

        def fill_share() -> dict[str, tuple[str, int]]:
            with ShardWriter(self.folder, self._ranks.number) as writer:
                fill(writer)
            return writer.places

        for places in self._ranks.all(fill_share):
            self.num_computed += len(places)
            self.places |= places

    def write_index(self) -> None:
        """Keep where everything is, if that has changed; only one process may call this."""
        if self.places == (self._indexed or {}) and not self._damaged:
            return
        rows = [{"key": key, "shard": shard, "row": row} for key, (shard, row) in self.places.items()]
        write_table(self.index, INDEX, rows)

    def clear(self) -> None:
        """Remove everything, so that it is computed again; only one process may call this."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def reader(self) -> ShardReader:
        return ShardReader(self.folder, self.places)

    def num_bytes(self) -> int:
        """Size of all shards on disk."""
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.arrow"))

    def _read_index(self) -> dict[str, tuple[str, int]] | None:
        rows = read_table(self.index, INDEX) if self.index.is_file() else None
        return None if rows is None else {row["key"]: (row["shard"], row["row"]) for row in rows}

    def _remove_remains(self) -> None:
        """Damaged shards, and what a killed process was writing."""
        for path in (*self._damaged, *self.folder.glob(".*.partial.arrow")):
            with suppress(FileNotFoundError):
                path.unlink()
