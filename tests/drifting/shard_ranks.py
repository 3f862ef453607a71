"""What the processes of test_shard_index do; spawned processes import it."""

import json
from pathlib import Path

from latentloom.drifting.clips import shard_scan
from latentloom.drifting.clips.shard_index import ShardIndex


def open_shards(rank: int, root: str, folder: str) -> None:
    """Open shards in every process, and tell how often each one looked through them."""
    calls, scan = [], shard_scan._scan

    def counted(shards):
        calls.append(shards)
        return scan(shards)

    shard_scan._scan = counted
    found = {"fingerprint": ShardIndex.open(root).fingerprint, "scans": len(calls)}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
