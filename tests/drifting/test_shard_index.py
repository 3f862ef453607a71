"""Random access to clips: what is loaded by number is what the stream gives, and damage is found once."""

import importlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import SHAPE, clip_text, clip_values, members, pt, write_folder, write_tar

from latentloom.drifting.clips import shard_index, shard_scan
from latentloom.drifting.clips.clip_sample import ClipDecoder
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.shard_stream import stream_shards
from latentloom.drifting.clips.shard_writer import ShardWriter
from latentloom.errors import ConfigError, CorruptFileError
from latentloom.runs import launch_processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("index") / "s", 7, 3)


def no_scan(*_):
    raise AssertionError("the shards are looked through again")


@settings(max_examples=20)
@given(rows=st.lists(st.integers(0, 6), max_size=12))
def test_clips_are_loaded_in_any_order_and_more_than_once(folder, rows):
    index = ShardIndex.open(folder)
    values = index.load(torch.tensor(rows, dtype=torch.long))
    assert values.shape == (len(rows), *SHAPE)
    texts = index.load_text(rows)
    assert texts.lengths.tolist() == [len(clip_text(row)) for row in rows]
    for value, text, row in zip(values, texts.to_list(), rows, strict=True):
        assert torch.equal(value, clip_values(row))
        assert torch.equal(text, clip_text(row))
    assert index.prompts(rows) == [f"prompt {row}" for row in rows]


def test_the_index_and_the_stream_agree(folder):
    index, streamed = ShardIndex.open(folder), list(stream_shards(folder))
    assert list(index.keys) == [clip.key for clip in streamed]
    for row, clip in enumerate(streamed):
        found = index.sample(row)
        assert torch.equal(found.values, clip.values)
        assert found.text is not None
        assert clip.text is not None
        assert torch.equal(found.text, clip.text)
        assert (found.key, found.prompt, found.anchors is None) == (clip.key, clip.prompt, clip.anchors is None)


def test_anchors_stand_at_their_frames_and_zeros_elsewhere(folder):
    values, has_student = ShardIndex.open(folder).load_anchors([1, 3])
    assert has_student.tolist() == [[False] * 5, [True, False, False, False, True]]
    assert torch.equal(values[1][:, [0, 4]], (clip_values(3)[:, [0, 4]] + 1).half().float())
    assert not values[0].any()
    assert not values[1][:, 1:4].any()


def test_anchors_are_read_without_the_clip(folder, monkeypatch):
    index = ShardIndex.open(folder)
    monkeypatch.setattr(ClipDecoder, "decode_stored", no_scan)
    assert index.load_anchors([3])[1].any()
    assert index.has_anchors([1, 3])
    assert not index.has_anchors([1])


@settings(max_examples=20)
@given(picked=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=12))
@pytest.mark.parametrize("whole_at_most", [0, 2**20])
def test_frames_are_those_of_the_clips(folder, picked, whole_at_most):
    index = ShardIndex.open(folder)
    rows, frames = [row for row, _ in picked], [frame for _, frame in picked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_index, "WHOLE_AT_MOST", whole_at_most)
        found = index.load_frames(rows, frames)
    expected = index.load(rows)
    assert all(torch.equal(one, clip[:, frame]) for one, clip, frame in zip(found, expected, frames, strict=True))


def test_of_large_clips_single_frames_are_read(tmp_path, monkeypatch):
    with ShardWriter(tmp_path / "s", space="pixel") as writer:
        writer.write("large", torch.randn(3, 9, 64, 64))
    index, num_bytes = ShardIndex.open(tmp_path / "s"), []
    read = shard_index._TarReader.bytes
    monkeypatch.setattr(
        shard_index._TarReader, "bytes", lambda self, start, num: num_bytes.append(num) or read(self, start, num)
    )
    frame = index.load_frames([0], [7])
    assert sum(num_bytes) == 3 * 64 * 64 * 2
    assert torch.equal(frame[0], index.load([0])[0, :, 7])
    with pytest.raises(IndexError, match="frame 9 of 9"):
        index.load_frames([0], [9])


def test_one_of_two_processes_looks_for_the_clips(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # spawned processes take over the path
    ranks = importlib.import_module("shard_ranks")
    launch_processes(ranks.open_shards, 2, str(write_folder(tmp_path / "s", 3)), str(tmp_path))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["scans"] for one in found] == [1, 0]
    assert found[0]["fingerprint"] == found[1]["fingerprint"]


def test_rows_that_do_not_exist_are_an_error(folder):
    with pytest.raises(IndexError, match="clip 7 of 7"):
        ShardIndex.open(folder).load([0, 7])


def test_what_was_found_is_kept_until_a_tar_changes(tmp_path, monkeypatch):
    write_folder(tmp_path / "s", 4, 2)
    first = ShardIndex.open(tmp_path / "s")
    with monkeypatch.context() as patch:
        patch.setattr(shard_scan, "_scan", no_scan)
        again = ShardIndex.open(tmp_path / "s")
        assert (again.keys, again.fingerprint, again.shape) == (first.keys, first.fingerprint, first.shape)
        assert torch.equal(again.load([3]), first.load([3]))
        os.utime(tmp_path / "s" / "shard-00001.tar", ns=(1, 1))
        with pytest.raises(AssertionError):
            ShardIndex.open(tmp_path / "s")
    assert ShardIndex.open(tmp_path / "s").fingerprint == first.fingerprint


def test_a_damaged_index_is_made_again(tmp_path):
    first = ShardIndex.open(write_folder(tmp_path / "s", 2))
    (file,) = (tmp_path / "s").glob(".clips-*.json")
    for content in ("{", json.dumps({**json.loads(file.read_text()), "clips": [{"key": 3}]})):
        file.write_text(content)
        assert ShardIndex.open(tmp_path / "s").keys == first.keys


def test_a_folder_that_cannot_be_written_to_is_read_as_well(tmp_path, monkeypatch):
    write_folder(tmp_path / "s", 2)
    real = shard_scan.write_text

    def refuse(path, text):
        real(tmp_path / "s" / "shards.json" / "below", text)  # a place that cannot be written to, whoever runs this

    monkeypatch.setattr(shard_scan, "write_text", refuse)
    index = ShardIndex.open(tmp_path / "s")
    assert torch.equal(index.load([1])[0], clip_values(1))
    assert not list((tmp_path / "s").glob(".clips-*"))


def test_the_fingerprint_tells_clips_from_others_and_not_copies(tmp_path):
    write_folder(tmp_path / "a", 2)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    with ShardWriter(tmp_path / "b", space="latent", frames="each", clips_per_shard=2) as writer:
        for number in range(2):
            writer.write(f"clip{number:03d}", clip_values(number + 5), clip_text(number), f"prompt {number}")
    first, copy, other = (ShardIndex.open(tmp_path / name).fingerprint for name in ("a", "copy", "b"))
    assert first == copy != other


def test_latents_that_do_not_lie_as_they_are_used_are_loaded_too(tmp_path):
    # transposed in memory, a part of a larger storage, and float64: as other programs may save them
    values = [clip_values(number) for number in range(3)]
    transposed = values[0].half().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    batch = torch.stack(values).half()
    clips = {
        "a": members(0, latent=transposed),
        "b": members(1, latent=batch[1]),
        "c": members(2, latent=values[2].double()),
    }
    write_tar(tmp_path / "s" / "x.tar", clips)
    assert torch.equal(ShardIndex.open(tmp_path / "s").load([0, 1, 2]), torch.stack(values))


def test_shards_without_texts_say_so(tmp_path):
    write_tar(tmp_path / "s" / "x.tar", {"a": {"latent.pt": pt(clip_values(0))}})
    index = ShardIndex.open(tmp_path / "s")
    assert index.text_width is None
    assert index.prompts([0]) == [""]
    with pytest.raises(ConfigError, match="holds no text embeddings"):
        index.load_text([0])


def test_an_empty_text_has_no_tokens(tmp_path):
    write_tar(tmp_path / "s" / "x.tar", {"a": members(0, embed=torch.zeros(512, 6)), "b": members(1)})
    assert ShardIndex.open(tmp_path / "s").load_text([1, 0]).lengths.tolist() == [2, 0]


def test_a_member_that_is_there_twice_counts_once_and_the_first_is_used(tmp_path):
    path = write_tar(tmp_path / "s" / "x.tar", {"a": members(0)})
    with tarfile.open(path, "a") as tar:
        data = pt(clip_values(3).half())
        entry = tarfile.TarInfo("a.latent.pt")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    stream = stream_shards(tmp_path / "s")
    (clip,) = stream
    index = ShardIndex.open(tmp_path / "s")
    assert torch.equal(clip.values, clip_values(0))
    assert torch.equal(index.load([0])[0], clip_values(0))
    assert stream.skipped == index.skipped == {"member twice": 1}


def test_a_tar_that_is_cut_after_it_was_opened_is_an_error_of_one_line(tmp_path):
    index = ShardIndex.open(write_folder(tmp_path / "s", 2))
    path = tmp_path / "s" / "shard-00000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CorruptFileError, match="open the shards again"):
        index.load([1])
