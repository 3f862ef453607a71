import json
import math
import re
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from latentloom.errors import ConfigError, CorruptFileError, FileError
from latentloom.runs import Config, RunFolder, RunRecord, find_run, list_runs


class Settings(Config):
    seed: int = 3
    data: str = "the world, 4000 clips"
    rate: float = 0.5


def start(root, name="train") -> RunFolder:
    return RunFolder.create(root, name, {"rate": 0.5}, command="latentloom x", seeds=[0, 1], data="none")


def test_a_run_starts_with_its_settings_and_a_complete_header(tmp_path):
    run = RunFolder.create(tmp_path / "runs", "train", Settings())
    assert re.fullmatch(r"\d{8}-\d{6}-train", run.path.name)
    assert tomllib.loads((run.path / "config.toml").read_text()) == {"seed": 3, "data": Settings().data, "rate": 0.5}
    stored = json.loads((run.path / "record.json").read_text())
    assert (stored["id"], stored["seeds"], stored["data"]) == (run.path.name, [3], "the world, 4000 clips")
    assert stored["versions"]["torch"] == torch.__version__
    assert all(stored[key] for key in ("date", "git_branch", "git_commit", "command", "device"))
    assert stored["status"] == "running"


@pytest.mark.parametrize(
    ("header", "missing"),
    [
        ({"data": "d"}, "seeds"),
        ({"seeds": []}, "seeds, data|data, seeds"),
        ({"seeds": [0], "data": " "}, "data"),
        ({"seeds": [0], "data": "d", "command": ""}, "command"),
    ],
)
def test_a_run_without_its_header_does_not_start(tmp_path, header, missing):
    with pytest.raises(ConfigError, match=f"lacks ({missing});"):
        RunFolder.create(tmp_path / "runs", "train", {}, **header)
    assert not (tmp_path / "runs").exists()


def test_runs_that_start_in_the_same_second_have_their_own_ids(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: start(tmp_path), range(12)))
    assert len({run.path for run in runs}) == 12
    assert {record.id for record in list_runs(tmp_path)} == {run.path.name for run in runs}


def test_a_finished_run_states_results_throughput_and_memory(tmp_path):
    run = start(tmp_path)
    run.count(30, "clips")
    run.count(10, "clips")
    time.sleep(0.05)
    results = {"accuracy": np.float32(0.5), "all": torch.tensor([1, 2]), "nan": math.nan, "where": tmp_path}
    record = run.finish(results, decision="keep")
    stored = json.loads((run.path / "record.json").read_text())
    assert stored["results"] == {"accuracy": 0.5, "all": [1, 2], "nan": None, "where": str(tmp_path)}
    assert (stored["status"], stored["decision"]) == ("finished", "keep")
    assert record.seconds is not None
    assert record.throughput["clips"] == pytest.approx(40 / record.seconds, rel=0.2)
    assert stored["peak_memory_mb"] > 50
    assert RunRecord.read(run.path).throughput == record.throughput


@pytest.mark.parametrize(("error", "status"), [(ValueError, "failed"), (KeyboardInterrupt, "interrupted")])
def test_an_error_is_noted_and_passed_on(tmp_path, error, status):
    with pytest.raises(error), start(tmp_path) as run:
        raise error("why")
    assert (run.record.status, run.record.results) == (status, {"error": f"{error.__name__}: why"})
    assert RunRecord.read(run.path) == run.record


def test_checkpoints_and_curves_lie_in_the_folder(tmp_path):
    with start(tmp_path) as run:
        assert run.checkpoints.is_dir()
        assert not (run.path / "tensorboard").exists()
        run.tensorboard().add_scalar("loss", 0.5, 1)
        assert run.tensorboard() is run.tensorboard()
    assert [path.name.startswith("events") for path in (run.path / "tensorboard").iterdir()] == [True]
    assert run.record.status == "finished"


def test_runs_are_listed_oldest_first_without_the_damaged(tmp_path, caplog):
    ids = [start(tmp_path, name).path.name for name in ("b", "a", "c")]
    (tmp_path / ids[1] / "record.json").write_text('{"id": 3')
    (tmp_path / "no-run").mkdir()
    assert [record.id for record in list_runs(tmp_path)] == [ids[0], ids[2]]
    assert ids[1] in caplog.text


def test_a_run_is_found_by_the_beginning_of_its_id(tmp_path):
    first, second = start(tmp_path, "one"), start(tmp_path, "two")
    assert find_run(tmp_path, second.path.name).id == second.path.name
    assert find_run(tmp_path, first.path.name[:-1]).id == first.path.name
    with pytest.raises(FileError, match=r"2 runs .* begin with '20'"):
        find_run(tmp_path, "20")
    with pytest.raises(FileError, match=f"the nearest is '{second.path.name}'"):
        find_run(tmp_path, second.path.name.replace("two", "twin"))
    with pytest.raises(FileError, match="nowhere is not a folder"):
        find_run(tmp_path / "nowhere", "20")
    (first.path / "record.json").write_text("[]")
    with pytest.raises(CorruptFileError, match="is damaged"):
        find_run(tmp_path, first.path.name)


def test_a_run_can_be_in_a_folder_that_the_user_named(tmp_path, monkeypatch):
    path = tmp_path / "new" / "my run"
    run = RunFolder.at(path, Settings())
    assert (run.path, run.record.id) == (path, "my run")
    assert tomllib.loads((path / "config.toml").read_text())["rate"] == 0.5
    assert RunRecord.read(path).status == "running"
    monkeypatch.chdir(path)
    assert RunFolder.at(".", Settings()).record.id == "my run"


def test_a_later_run_in_the_same_folder_replaces_the_record_and_leaves_the_rest(tmp_path):
    with RunFolder.at(tmp_path / "run", Settings()) as first:
        (first.checkpoints / "a").write_text("kept")
        first.finish({"accuracy": 0.5}, decision="keep")
    with pytest.raises(KeyboardInterrupt), RunFolder.at(tmp_path / "run", Settings(rate=0.25)) as second:
        raise KeyboardInterrupt
    stored = RunRecord.read(tmp_path / "run")
    assert (stored.status, stored.decision) == ("interrupted", None)
    assert tomllib.loads((tmp_path / "run" / "config.toml").read_text())["rate"] == 0.25
    assert (second.checkpoints / "a").read_text() == "kept"


def test_a_named_folder_needs_a_complete_header_and_a_place_to_write(tmp_path):
    with pytest.raises(ConfigError, match=r"lacks (seeds, data|data, seeds);"):
        RunFolder.at(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        RunFolder.at(tmp_path / "file" / "run", Settings())


@pytest.mark.parametrize("name", ["", "../out", "a b", ".hidden", "a/b", "x" * 100, "é"])
def test_names_that_are_no_folder_names_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="run name"):
        start(tmp_path, name)


def test_a_root_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file is not a folder"):
        start(tmp_path / "file")
    with pytest.raises(FileError, match="cannot make"):
        start(tmp_path / "file" / "deeper")
    with pytest.raises(FileError, match="not a folder"):
        list_runs(tmp_path / "none")
