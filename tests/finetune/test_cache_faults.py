"""Caching on bad files, bad disks and killed runs: named in a line, and nothing that was finished is lost."""

import signal
import time
from pathlib import Path

import pytest
import torch
from cache_runs import run, start, write_clip, write_clips
from PIL import Image

from latentloom.errors import CorruptFileError, FileError


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Six clips with captions."""
    write_clips(tmp_path / "clips", 6)
    return tmp_path / "clips"


def shards(clips: Path) -> list[Path]:
    return sorted((clips / "cache" / "latents").rglob("shard-*.arrow"))


def test_what_cannot_be_used_is_skipped_and_named(clips: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture):
    (clips / "empty.png").write_bytes(b"")
    (clips / "cut.mp4").write_bytes((clips / "000.mp4").read_bytes()[:1000])
    (clips / "001.txt").write_bytes("größe".encode("latin-1"))
    (clips / "002.txt").unlink()
    Image.new("RGB", (48, 48)).save(clips / "half.jpg")
    (clips / "half.jpg").write_bytes((clips / "half.jpg").read_bytes()[:-300])
    cached = run(clips, tiny_checkpoint)
    skipped = cached.report.skipped
    assert sorted(Path(file).name for file in skipped) == ["001.mp4", "cut.mp4", "empty.png", "half.jpg"]
    assert "001.txt is not UTF-8" in skipped[str(clips / "001.mp4")]
    assert "0 bytes" in skipped[str(clips / "empty.png")]
    assert sum("skipped: " in line for line in caplog.messages) == 4
    assert (cached.report.num_items, cached.report.num_missing_captions) == (5, 1)
    assert cached[cached.names.index("clips/002.mp4")].caption == ""
    lines = cached.report.lines()
    assert "4 files were skipped:" in lines
    assert "1 items have no caption file; their caption is empty" in lines
    assert not any("\n" in line for line in lines)

    again = run(clips, tiny_checkpoint)
    assert again.report.num_computed == 0
    assert again.report.skipped == skipped
    assert run(clips, tiny_checkpoint, trust=True).report.skipped == skipped


def test_a_file_that_was_repaired_is_used_again(clips: Path, tiny_checkpoint: Path):
    (clips / "new.mp4").write_bytes(b"")
    assert len(run(clips, tiny_checkpoint)) == 6
    write_clip(clips / "new.mp4", seed=70)
    cached = run(clips, tiny_checkpoint)
    assert (len(cached), cached.report.num_latents_computed, cached.report.skipped) == (7, 1, {})


def test_a_clip_shorter_than_every_bucket_is_named(clips: Path, tiny_checkpoint: Path, tmp_path: Path):
    write_clip(clips / "short.mp4", seed=70, num_frames=6)
    file = tmp_path / "dataset.toml"
    file.write_text("frame_buckets = [9]\n[[directory]]\npath = 'clips'\n")
    (reason,) = run(file, tiny_checkpoint).report.skipped.values()
    assert reason.startswith(f"{clips / 'short.mp4'}: it has 6 frames")
    assert "add 5 to frame_buckets" in reason


def test_where_nothing_can_be_used_the_first_reason_is_told(tmp_path: Path, tiny_checkpoint: Path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(FileError, match=r"1 files were skipped, first: .*empty\.png is empty"):
        run(tmp_path, tiny_checkpoint)


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path, tiny_checkpoint: Path):
    clips = tmp_path / "clips"
    write_clips(clips, 60)
    process = start(clips, tiny_checkpoint)
    deadline = time.monotonic() + 60
    while len(shards(clips)) < 3 and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was killed before it was done"
    finished = len(shards(clips))
    resumed = run(clips, tiny_checkpoint)
    assert 3 <= finished <= resumed.report.num_latents_reused < 60
    assert resumed.report.num_latents_computed + resumed.report.num_latents_reused == 60
    assert not list((clips / "cache").rglob("*.partial*"))
    at_once = [resumed[index].latents for index in range(60)]
    fresh = run(clips, tiny_checkpoint, regenerate=True)
    assert all(torch.equal(fresh[index].latents, latents) for index, latents in enumerate(at_once))


def test_a_damaged_shard_is_computed_again(clips: Path, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture):
    intact = run(clips, tiny_checkpoint)
    expected = [intact[index].latents for index in range(6)]
    (shard,) = shards(clips)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"shard-.*is damaged"):
        [run(clips, tiny_checkpoint, trust=True)[index] for index in range(6)]
    mended = run(clips, tiny_checkpoint)
    assert any("is damaged" in line for line in caplog.messages)
    assert (mended.report.num_latents_computed, mended.report.num_texts_computed) == (6, 0)
    assert all(torch.equal(mended[index].latents, latents) for index, latents in enumerate(expected))


@pytest.mark.parametrize("keep", [0, 7, 300, -100])
def test_a_shard_or_index_cut_short_is_made_again(clips: Path, tiny_checkpoint: Path, keep: int):
    run(clips, tiny_checkpoint)
    for path in (clips / "cache").rglob("*.arrow"):
        path.write_bytes(path.read_bytes()[:keep])
    assert run(clips, tiny_checkpoint).report.num_latents_computed == 6
    assert run(clips, tiny_checkpoint).report.num_computed == 0


def test_a_full_disk_is_one_line_and_finished_shards_stay(clips: Path, tiny_checkpoint: Path):
    # a limit on the size of files stands for the full disk: writing fails in the same call
    run(clips, tiny_checkpoint)
    finished = shards(clips)
    Image.new("RGB", (48, 48)).save(clips / "small.png")
    write_clip(clips / "large.mp4", seed=70)
    process = start(clips, tiny_checkpoint, largest_file=2600)
    process.join()
    assert process.exitcode == 2
    error = (clips.parent / "error.txt").read_text()
    assert error.startswith(f"cannot write {clips / 'cache'}")
    assert "File too large" in error
    assert "what was finished is kept" in error
    assert shards(clips) == finished
    assert not list((clips / "cache").rglob("*.partial*"))
    resumed = run(clips, tiny_checkpoint).report
    assert (resumed.num_latents_computed, resumed.num_latents_reused) == (2, 6)


def test_a_cache_that_cannot_be_written_to_is_refused_before_a_model_is_loaded(clips: Path, tiny_checkpoint: Path):
    (clips / "cache").write_text("in the way")  # permissions do not stop an administrator, who runs tests in places
    with pytest.raises(FileError, match=r"cannot write .*cache"):
        run(clips, tiny_checkpoint)
    assert (clips / "cache").read_text() == "in the way"
