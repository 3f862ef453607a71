"""The data set's file: as diffusion-pipe writes it, checked, with defaults that fit the model."""

from pathlib import Path

import pytest

from latentloom.errors import ConfigError, FileError
from latentloom.finetune.dataset_config import MediaFolder, load_folders
from latentloom.wan import facts
from latentloom.wan.clip_size import ClipSize

MICRO = facts.get("micro")
FIVE_B = facts.get("ti2v-5b")


def load(tmp_path: Path, text: str, model: facts.ModelFacts = FIVE_B) -> list[MediaFolder]:
    for name in ("clips", "more", "deep/clips"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    file = tmp_path / "dataset.toml"
    file.write_text(text)
    return load_folders(file, model)


def test_a_file_of_diffusion_pipe_is_read(tmp_path: Path):
    (folder,) = load(
        tmp_path,
        """
        resolutions = [512, 640]
        enable_ar_bucket = true
        min_ar = 0.5
        max_ar = 2.0
        num_ar_buckets = 3
        frame_buckets = [1, 33, 65]
        [[directory]]
        path = 'clips'
        num_repeats = 10
        """,
    )
    assert folder.path == (tmp_path / "clips").resolve(), "relative to the file"
    assert folder.num_repeats == 10
    assert folder.buckets.frame_sizes[0] == ((352, 736), (512, 512), (736, 352))
    assert folder.buckets.frame_counts == (1, 33, 65)
    assert folder.buckets.assign(16, 9, 70) == [ClipSize(65, 352, 736), ClipSize(65, 448, 896)]


def test_a_folder_overrides_what_the_data_set_says(tmp_path: Path):
    first, second, third = load(
        tmp_path,
        """
        resolutions = [512]
        enable_ar_bucket = true
        ar_buckets = [1.0, 1.5]
        frame_buckets = [1, 33]
        [[directory]]
        path = 'clips'
        resolutions = [[320, 192]]
        enable_ar_bucket = false
        [[directory]]
        path = 'more'
        frame_buckets = [1]
        [[directory]]
        path = 'deep/clips'
        min_ar = 1.0
        max_ar = 1.0
        num_ar_buckets = 1
        """,
    )
    assert first.buckets.frame_sizes == (((320, 192),),)
    assert first.buckets.frame_counts == (1, 33)
    assert len(second.buckets.frame_sizes[0]) == 2
    assert second.buckets.frame_counts == (1,)
    assert third.buckets.frame_sizes == (((512, 512),),), "the folder's range takes the place of the list"
    assert [folder.name for folder in (first, second, third)] == ["clips", "more", "clips (2)"]


def test_ratios_may_be_given_as_sizes(tmp_path: Path):
    (folder,) = load(
        tmp_path,
        "resolutions = [512]\nenable_ar_bucket = true\nar_buckets = [[448, 576], [512, 512]]\n"
        "[[directory]]\npath = 'clips'",
    )
    assert folder.buckets.frame_sizes[0] == ((448, 576), (512, 512))


@pytest.mark.parametrize(
    ("model", "size"), [(MICRO, ClipSize(9, 48, 48)), (FIVE_B, ClipSize(121, 704, 1280))], ids=["micro", "5b"]
)
def test_a_bare_folder_gets_the_models_own_size(tmp_path: Path, model: facts.ModelFacts, size: ClipSize):
    (folder,) = load_folders(tmp_path, model)
    assert folder.buckets.assign(100, 90, 1000) == [size]
    assert folder.buckets.assign(100, 90, 1)[0].num_frames == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resolution = [512]", "unknown setting 'resolution'; the nearest is 'resolutions'"),
        ("[[directory]]\npath = 'clips'\nnum_repeat = 2", "the nearest is 'directory.num_repeats'"),
        ("frame_buckets = [1, 32]\n[[directory]]\npath = 'clips'", "32 frames are not 4n.1; use 29 or 33"),
        ("resolutions = ['large']\n[[directory]]\npath = 'clips'", "resolutions"),
        ("resolutions = []\n[[directory]]\npath = 'clips'", "resolutions"),
        ("min_ar = 0.5\n[[directory]]\npath = 'clips'", "min_ar has no effect without enable_ar_bucket"),
        ("min_ar = 0.5\nar_buckets = [1.0]\n[[directory]]\npath = 'clips'", "exclude each other"),
        ("min_ar = 2.0\nmax_ar = 1.0\n[[directory]]\npath = 'clips'", "above max_ar"),
        ("enable_ar_bucket = true\nmax_ar = 1.0\n[[directory]]\npath='clips'\nmin_ar = 1.5", "above max_ar"),
        ("[[directory]]\npath = 'clips'\nnum_repeats = 0", "num_repeats"),
        ("directory = []", "directory"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, message: str):
    with pytest.raises(ConfigError, match=message) as raised:
        load(tmp_path, text)
    assert "\n" not in str(raised.value)
    assert "dataset.toml" in str(raised.value)


@pytest.mark.parametrize(("name", "what"), [("nothing", "does not exist"), ("dataset.toml", "is a file")])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, name: str, what: str):
    with pytest.raises(FileError, match=f"{name} {what}"):
        load(tmp_path, f"[[directory]]\npath = '{name}'")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(FileError, match=r"nothing\.toml"):
        load_folders(tmp_path / "nothing.toml", MICRO)
