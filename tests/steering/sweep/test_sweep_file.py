"""The results of a sweep on disk."""

import json

import pytest

from latentloom.errors import ConfigError, CorruptFileError
from latentloom.steering.sweep.results import SweepFile

SETTINGS = {"pairs": [["a", "b", 0]], "size": (9, 48)}


def test_every_result_is_on_disk_at_once_and_comes_back(tmp_path):
    path = tmp_path / "sweep.json"
    section = SweepFile(path, SETTINGS).section("readings")
    assert not path.exists()
    section["0-2"] = ["red", None]
    again = SweepFile(path, SETTINGS)
    assert dict(again.section("readings")) == {"0-2": ["red", None]}
    again.section("velocity")["x"] = [1.5]
    assert json.loads(path.read_text())["results"] == {"readings": {"0-2": ["red", None]}, "velocity": {"x": [1.5]}}
    del again.section("readings")["0-2"]
    assert len(SweepFile(path, SETTINGS).section("readings")) == 0


def test_results_of_other_settings_are_refused_by_name(tmp_path):
    path = tmp_path / "sweep.json"
    SweepFile(path, SETTINGS).section("readings")["none"] = []
    with pytest.raises(ConfigError, match=r"holds a sweep with other size; give another --out, or delete it"):
        SweepFile(path, {**SETTINGS, "size": (17, 48)})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}', '{"settings": {}, "results": {"readings": 3}}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    with pytest.raises(CorruptFileError, match="not a sweep's results"):
        SweepFile(path, SETTINGS)
