"""Shards of clips: what is written comes back bit for bit, and what is damaged is skipped and counted."""

import gc
import logging
import os
import signal
import subprocess
import sys
import tarfile
import tracemalloc
import weakref
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_files import (
    SHAPE,
    bad_members,
    clip_text,
    clip_values,
    members,
    more_unreadable,
    pt,
    write_folder,
    write_tar,
)

from latentloom.drifting.clips.clip_sample import BadClipError, ClipDecoder
from latentloom.drifting.clips.manifest import MANIFEST_NAME, read_manifest
from latentloom.drifting.clips.shard_index import ShardIndex
from latentloom.drifting.clips.shard_stream import stream_shards
from latentloom.drifting.clips.shard_writer import DTYPES, ShardWriter
from latentloom.drifting.clips.shards import find_shards
from latentloom.errors import ConfigError, CorruptFileError, FileError, ShapeError


@pytest.mark.parametrize("dtype", DTYPES)
def test_clips_come_back_bit_for_bit(tmp_path, dtype):
    folder, clips = tmp_path / "s", [clip_values(number, dtype=DTYPES[dtype]) for number in range(3)]
    with ShardWriter(folder, space="latent", dtype=dtype) as writer:
        for number, values in enumerate(clips):
            writer.write(str(number), values)
    found = list(stream_shards(folder))
    assert [clip.key for clip in found] == ["0", "1", "2"]
    for clip, values in zip(found, clips, strict=True):
        assert clip.values.dtype == torch.float32
        assert torch.equal(clip.values, values)


def test_all_that_belongs_to_a_clip_comes_back(tmp_path):
    stream = stream_shards(write_folder(tmp_path / "s"))
    found = list(stream)
    assert [clip.key for clip in found] == [f"clip{number:03d}" for number in range(5)]
    for number, clip in enumerate(found):
        assert clip.prompt == f"prompt {number}"
        assert clip.text is not None
        assert torch.equal(clip.text, clip_text(number))
        assert (clip.anchors is not None) == (number % 3 == 0)
    assert found[3].anchors is not None
    assert torch.equal(found[3].anchors.values, (clip_values(3)[:, [0, 4]] + 1).half().float())
    assert found[3].anchors.index.tolist() == [0, 4]
    assert not stream.skipped
    assert [clip.key for clip in stream] == [clip.key for clip in found]  # a second time from the start


@settings(max_examples=20)
@given(num_clips=st.integers(1, 7), clips_per_shard=st.integers(1, 4))
def test_shards_divide_the_clips(tmp_path_factory, num_clips, clips_per_shard):
    folder = write_folder(tmp_path_factory.mktemp("s") / "s", num_clips, clips_per_shard)
    shards = find_shards(folder)
    assert len(shards.paths) == -(-num_clips // clips_per_shard)
    assert shards.manifest is not None
    assert shards.manifest.num_clips == num_clips == len(list(stream_shards(folder)))


def test_the_members_are_those_of_the_document(tmp_path):
    with tarfile.open(write_folder(tmp_path / "s", 1) / "shard-00000.tar") as tar:
        assert sorted(tar.getnames()) == [
            f"clip000.{name}" for name in ("anchors.pt", "embed.pt", "latent.pt", "prompt.txt")
        ]
        tar.extractall(tmp_path, filter="data")
    padded, latent = (torch.load(tmp_path / f"clip000.{name}.pt", weights_only=True) for name in ("embed", "latent"))
    assert padded.shape == (512, 6)
    assert not padded[1:].any()
    assert latent.dtype == torch.float16
    assert latent.shape == SHAPE


def test_the_manifest_tells_what_the_clips_are(tmp_path):
    write_folder(tmp_path / "s", vae="aa", text_encoder="bb", fps=25.0, source="a test")
    manifest = read_manifest(tmp_path / "s")
    assert manifest is not None
    assert (manifest.space, manifest.frames, manifest.shape, manifest.fps) == ("latent", "each", SHAPE, 25.0)
    assert (manifest.num_clips, manifest.clips_per_shard, manifest.text_width) == (5, 2, 6)
    assert (manifest.vae, manifest.text_encoder, manifest.source) == ("aa", "bb", "a test")


def test_a_damaged_manifest_is_one_line(tmp_path):
    (write_folder(tmp_path / "s") / MANIFEST_NAME).write_text('{"space": "sound"}')
    with pytest.raises(CorruptFileError, match=r"shards\.json is damaged") as error:
        stream_shards(tmp_path / "s")
    assert "\n" not in str(error.value)


def test_bad_clips_are_skipped_and_counted_by_stream_and_index_alike(tmp_path, caplog):
    bad = bad_members(tmp_path / "ran")
    clips = {"a": members(0), **{f"bad{number}": found for number, found in enumerate(bad.values())}, "z": members(9)}
    write_tar(tmp_path / "s" / "x.tar", clips)
    stream = stream_shards(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        assert [clip.key for clip in stream] == ["a", "z"]
        list(stream)
    assert stream.skipped == Counter(dict.fromkeys(bad, 1))
    for number in range(len(bad)):
        assert sum(f"bad{number} is skipped" in line for line in caplog.messages) == 1
    index = ShardIndex.open(tmp_path / "s")
    assert index.keys == ("a", "z")
    assert index.skipped == stream.skipped


def test_no_latent_is_unpickled_that_holds_anything_but_a_tensor(tmp_path):
    decoder = ClipDecoder(find_shards(write_folder(tmp_path / "s")))
    for name, data in more_unreadable(tmp_path / "ran").items():
        with pytest.raises(BadClipError) as error:
            decoder.decode("key", {**members(0), "latent.pt": data})
        expected = ("unreadable latent", "another shape") if name == "stretched" else ("unreadable latent",)
        assert error.value.reason in expected, name
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(5, 16, 4, 4), (3, 16, 4, 4), (17, 16, 4, 4)])
def test_frames_before_channels_are_refused_and_never_turned(tmp_path, shape):
    # also with fewer frames than channels and with more, where guessing by size would differ
    write_tar(tmp_path / "s" / "x.tar", {str(n): {"latent.pt": pt(clip_values(n, shape))} for n in range(3)})
    stream = stream_shards(tmp_path / "s", channels=16)
    with pytest.raises(CorruptFileError, match=r"no clip of 16 channels.*3 x another order of dimensions"):
        list(stream)
    with pytest.raises(CorruptFileError, match="3 x another order of dimensions"):
        ShardIndex.open(tmp_path / "s", channels=16)


def test_other_channels_than_the_manifest_are_refused_at_once(tmp_path):
    write_folder(tmp_path / "s")
    with pytest.raises(ShapeError, match=r"clips of 16 channels \(latent space\), not 3"):
        stream_shards(tmp_path / "s", channels=3)


def test_foreign_shards_are_read_without_manifest(tmp_path):
    # keys with folders, bfloat16 texts, a latent that is a view of more, and other members beside
    batch = torch.stack([clip_values(0), clip_values(1)]).half()
    clips = {"deep/00": members(0, latent=batch[0]), "deep/01": members(1, latent=batch[1])}
    clips["deep/01"]["json"] = b"{}"
    write_tar(tmp_path / "s" / "foreign.tar", clips)
    found = list(stream_shards(tmp_path / "s"))
    assert [clip.key for clip in found] == ["deep/00", "deep/01"]
    assert torch.equal(found[1].values, clip_values(1))
    assert found[1].text is not None
    assert torch.equal(found[1].text, clip_text(1).bfloat16().float())
    assert stream_shards(tmp_path / "s").shards.manifest is None


def test_a_cut_tar_loses_its_last_clip_and_no_other(tmp_path):
    folder = write_folder(tmp_path / "s", 6, 3)
    first = folder / "shard-00000.tar"
    first.write_bytes(first.read_bytes()[: int(first.stat().st_size * 0.6)])
    stream = stream_shards(folder)
    keys = [clip.key for clip in stream]
    assert keys == ["clip000", "clip003", "clip004", "clip005"] or keys == [
        "clip000",
        "clip001",
        "clip003",
        "clip004",
        "clip005",
    ]
    assert stream.skipped == {"damaged tar": 1}
    index = ShardIndex.open(folder)
    assert list(index.keys) == keys
    assert index.skipped == stream.skipped


def test_a_tar_of_garbage_is_counted(tmp_path):
    folder = write_folder(tmp_path / "s", 2, 1)
    (folder / "shard-00000.tar").write_bytes(b"garbage" * 1000)
    stream = stream_shards(folder)
    assert [clip.key for clip in stream] == ["clip001"]
    assert stream.skipped == ShardIndex.open(folder).skipped == {"damaged tar": 1}


def test_a_broken_header_in_the_middle_is_noticed(tmp_path):
    folder = write_folder(tmp_path / "s", 8, 8)
    path = folder / "shard-00000.tar"
    data = bytearray(path.read_bytes())
    at = data.index(b"clip004.")
    data[at : at + 200] = b"\x07" * 200
    path.write_bytes(data)
    stream, index = stream_shards(folder), ShardIndex.open(folder)
    assert [clip.key for clip in stream] == ["clip000", "clip001", "clip002"] == list(index.keys)
    assert stream.skipped == index.skipped == {"damaged tar": 1}


def test_brace_patterns_name_shards(tmp_path):
    write_folder(tmp_path / "s", 6, 2)
    found = list(stream_shards(f"{tmp_path}/s/shard-{{00000..00001}}.tar"))
    assert [clip.key for clip in found] == [f"clip{number:03d}" for number in range(4)]
    assert len(ShardIndex.open(f"{tmp_path}/s/shard-{{00000,00002}}.tar")) == 4
    assert len(ShardIndex.open(tmp_path / "s")) == 6  # what the pattern left beside the tars is not taken for it


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("s/shard-{00000..00009}.tar", "7 of its 10 shards are missing"),
        ("nowhere", "no such folder or file"),
        ("s/shard-{00000", "do not close"),
        ("empty", "holds no shards"),
        ("", "give one of its folders: s"),
    ],
)
def test_roots_without_shards_are_one_line(tmp_path, root, said):
    write_folder(tmp_path / "s", 6, 2)
    (tmp_path / "empty").mkdir()
    with pytest.raises((FileError, ConfigError), match=said) as error:
        stream_shards(f"{tmp_path}/{root}")
    assert "\n" not in str(error.value)


def test_folders_of_different_kinds_do_not_mix(tmp_path):
    write_folder(tmp_path / "a", 1)
    with ShardWriter(tmp_path / "b", space="pixel") as writer:
        writer.write("0", clip_values(0))
    with pytest.raises(ConfigError, match="give shards of one kind"):
        stream_shards(f"{tmp_path}/{{a,b}}/shard-00000.tar")


def test_the_writer_refuses_what_does_not_fit(tmp_path):
    with pytest.raises(FileError, match="is not empty"):
        ShardWriter(write_folder(tmp_path / "s"), space="latent")
    with ShardWriter(tmp_path / "new", space="latent") as writer:
        writer.write("a", clip_values(0))
        with pytest.raises(ShapeError, match="all clips of a folder are alike"):
            writer.write("b", clip_values(0, (16, 4, 4, 4)))
        with pytest.raises(ShapeError, match="cannot hold"):
            writer.write("b", clip_values(0) * 1e6)
        with pytest.raises(ConfigError, match="two clips have the key"):
            writer.write("a", clip_values(1))
        with pytest.raises(ConfigError, match="without dots"):
            writer.write("a.b", clip_values(1))
    assert [clip.key for clip in stream_shards(tmp_path / "new")] == ["a"]


def test_a_failed_writer_leaves_whole_shards_alone(tmp_path):
    def write():
        with ShardWriter(tmp_path / "s", space="latent", clips_per_shard=2) as writer:
            for number in range(5):
                writer.write(str(number), clip_values(number))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write()
    found = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert found == ["shard-00000.tar", "shard-00001.tar", MANIFEST_NAME]
    (tmp_path / "s" / MANIFEST_NAME).unlink()
    assert len(list(stream_shards(tmp_path / "s"))) == 4


def test_an_error_before_a_shard_is_whole_leaves_nothing(tmp_path):
    def write() -> None:
        with ShardWriter(tmp_path / "s", space="latent") as writer:
            writer.write("0", clip_values(0))
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        write()
    assert not any((tmp_path / "s").iterdir())


def test_a_killed_writer_leaves_whole_shards_that_are_refused_as_unfinished(tmp_path):
    program = f"""
import os, signal, torch
from pathlib import Path
from latentloom.drifting.clips.shard_writer import ShardWriter
with ShardWriter(Path({str(tmp_path / "s")!r}), space="latent", clips_per_shard=2) as writer:
    for number in range(5):
        writer.write(str(number), torch.zeros(16, 5, 4, 4))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert killed.returncode == -signal.SIGKILL
    for read in (stream_shards, ShardIndex.open):
        with pytest.raises(CorruptFileError, match=r"was never finished.*make the shards again") as error:
            read(tmp_path / "s")
        assert "\n" not in str(error.value)
    (tmp_path / "s" / MANIFEST_NAME).unlink()
    stream = stream_shards(tmp_path / "s")
    assert [clip.key for clip in stream] == ["0", "1", "2", "3"]
    assert not stream.skipped


def test_fifty_shards_are_read_in_constant_memory(tmp_path):
    write_folder(tmp_path / "s", 100, 2)
    peaks = {}
    for last in (4, 49):
        values: list[weakref.ref] = []
        gc.collect()
        tracemalloc.start()
        for clip in stream_shards(f"{tmp_path}/s/shard-{{00000..{last:05d}}}.tar"):
            values.append(weakref.ref(clip.values))
            assert sum(value() is not None for value in values) <= 2  # this clip, and the one before at most
        peaks[last] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert len(values) == 100
    assert peaks[49] < 1.2 * peaks[4] + 50_000
