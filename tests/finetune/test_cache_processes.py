"""Caching in several processes: each computes its share, and all get what one alone would get."""

import json
from pathlib import Path

from cache_runs import run, run_in_process, write_clips

from latentloom.runs import launch_processes


def test_two_processes_give_what_one_gives_and_end_on_each_others_errors(tmp_path: Path, tiny_checkpoint: Path):
    together, alone, blocked = (tmp_path / name / "clips" for name in ("together", "alone", "blocked"))
    for clips in (together, alone, blocked):
        write_clips(clips, 7)
        (clips / "empty.png").write_bytes(b"")
        (clips / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    (blocked / "cache").write_text("in the way")
    launch_processes(run_in_process, 2, str(together), str(blocked), str(tiny_checkpoint), str(tmp_path))
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    error, names, sizes, num_computed, sums, skipped = told[0]
    assert error.startswith("cannot write ")
    expected = run(alone, tiny_checkpoint)
    assert names == expected.names
    assert sizes == [[size.num_frames, size.height, size.width] for size in expected.sizes]
    assert num_computed == expected.report.num_computed
    assert sums == [float(expected[index].latents.double().sum()) for index in range(7)]
    assert [Path(file).name for file in skipped] == ["cut.jpg", "empty.png"]
    assert {path.name.split("-")[1] for path in (together / "cache" / "latents").rglob("shard-*.arrow")} == {
        "000",
        "001",
    }
    assert run(together, tiny_checkpoint).report.num_computed == 0
