import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import FileError
from latentloom.storage import atomic_write, replace_folder, require_writable, write_json, write_text


@given(old=st.text(), new=st.text(), error=st.sampled_from([ValueError, KeyboardInterrupt]))
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path_factory, old, new, error):
    folder = tmp_path_factory.mktemp("atomic")
    write_text(folder / "kept.txt", old)

    def fail() -> None:
        with atomic_write(folder / "kept.txt") as temporary:
            temporary.write_text(new, encoding="utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert (folder / "kept.txt").read_bytes() == old.encode()
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]


def test_the_temporary_file_is_a_neighbour_with_the_same_suffix(tmp_path):
    with atomic_write(tmp_path / "made" / "clip.mp4") as temporary:
        assert temporary.parent == tmp_path / "made"
        assert temporary.suffix == ".mp4"
        temporary.write_text("x")
        assert not (tmp_path / "made" / "clip.mp4").exists()
    assert (tmp_path / "made" / "clip.mp4").read_text() == "x"


def test_places_that_cannot_be_written_are_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "file" / "below.txt", tmp_path / "folder", "/dev/null"):
        for attempt in (lambda place=place: write_text(place, "x"), lambda place=place: require_writable(place)):
            with pytest.raises(FileError) as error:
                attempt()
            assert "\n" not in str(error.value)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    write_text(tmp_path / "kept.txt", "x")
    require_writable(tmp_path / "kept.txt")
    require_writable(tmp_path / "to" / "be" / "made.mp4")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, error):
    write_text(tmp_path / "weights" / "old.txt", "x")

    def fail() -> None:
        with replace_folder(tmp_path / "weights") as folder:
            write_text(folder / "new.txt", "x")
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name for path in tmp_path.rglob("*")] == ["weights", "old.txt"]
    with replace_folder(tmp_path / "weights") as folder:
        write_text(folder / "new.txt", "x")
    assert [path.name for path in tmp_path.rglob("*")] == ["weights", "new.txt"]


def test_json_stays_json_when_a_number_is_not_finite(tmp_path):
    write_json(tmp_path / "a.json", {"loss": math.nan, "all": [1.5, (math.inf,)], "name": "größe"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"loss": None, "all": [1.5, [None]], "name": "größe"}
