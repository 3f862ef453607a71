"""Captioned clips as files."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from latentloom.errors import ConfigError, FileError
from latentloom.micro.attributes import COLOURS, Attributes, split
from latentloom.micro.draw import write_clips
from latentloom.micro.lexicon import LEXICONS, parse
from latentloom.micro.read import read_clips
from latentloom.micro.score import to_unit_range
from latentloom.storage import read_video


def shown(clip: Path) -> Attributes:
    return read_clips(to_unit_range(torch.from_numpy(read_video(clip)[0])[None]))[0].attributes


@pytest.mark.parametrize(
    ("lexicon", "split_name", "num_frames", "size"),
    [("seen", "train", 9, 48), ("unseen", "held_out", 17, 64), ("telegraphic", "unseen_pair", 9, 64)],
)
def test_every_caption_says_what_its_clip_shows(tmp_path, lexicon: str, split_name: str, num_frames: int, size: int):
    write_clips(tmp_path, 6, num_frames=num_frames, frame_size=size, split_name=split_name, lexicon=lexicon, seed=2)
    expected = [f"{index:05d}.{suffix}" for index in range(6) for suffix in ("mp4", "txt")]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    for clip in sorted(tmp_path.glob("*.mp4")):
        frames, fps = read_video(clip)
        assert frames.shape == (num_frames, size, size, 3)
        assert fps == 8
        text = clip.with_suffix(".txt").read_text("utf-8")
        assert text.endswith("\n")
        assert text.count("\n") == 1
        assert shown(clip) == parse(text)
        assert parse(text) in split(split_name)


def test_captions_use_the_words_of_their_lexicon_alone(tmp_path):
    colours = {name: {word for value in COLOURS for word in words[value]} for name, words in LEXICONS.items()}
    for lexicon, own in colours.items():
        write_clips(tmp_path / lexicon, 5, lexicon=lexicon)
        for file in (tmp_path / lexicon).glob("*.txt"):
            words = set(re.findall(r"[a-z]+", file.read_text("utf-8").lower()))
            assert len(words & own) == 1
            assert words & set.union(*colours.values()) <= own


def test_a_clip_does_not_depend_on_how_many_are_drawn(tmp_path):
    write_clips(tmp_path / "few", 2, seed=4)
    write_clips(tmp_path / "many", 4, seed=4)
    write_clips(tmp_path / "other", 2, seed=5)
    for name in ("00000", "00001"):
        few, many, other = (tmp_path / folder / name for folder in ("few", "many", "other"))
        assert few.with_suffix(".txt").read_text() == many.with_suffix(".txt").read_text()
        assert few.with_suffix(".mp4").read_bytes() == many.with_suffix(".mp4").read_bytes()
        assert not np.array_equal(read_video(few.with_suffix(".mp4"))[0], read_video(other.with_suffix(".mp4"))[0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split_name": "test"}, "unknown split 'test': choose from train, held_out, unseen_pair"),
        ({"lexicon": "latin"}, "unknown lexicon 'latin': choose from seen, unseen, telegraphic"),
        ({"frame_size": 50}, "9 frames of 50 pixels"),
        ({"num_frames": 10}, "10 frames of 48 pixels"),
    ],
)
def test_a_wrong_setting_is_refused_and_leaves_no_folder(tmp_path, setting: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        write_clips(tmp_path / "clips", 2, **setting)
    assert not (tmp_path / "clips").exists()


def test_a_folder_that_holds_something_is_refused_and_kept(tmp_path):
    (tmp_path / "00000.txt").write_text("mine")
    with pytest.raises(FileError, match="is not empty"):
        write_clips(tmp_path, 2)
    with pytest.raises(FileError, match="is not empty"):
        write_clips(tmp_path / "00000.txt", 2)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
