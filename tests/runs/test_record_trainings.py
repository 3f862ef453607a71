"""A training states its data, model, loss and size before it starts; what does not apply is said to be None."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, FileError
from latentloom.runs import RunFolder, RunRecord, TrainingFacts, find_run, list_runs
from latentloom.runs.experiment import complete_trainings

FACTS: dict[str, Any] = {
    "data": {"pattern": "shard-{00000..00009}.tar", "shards": "00000 to 00009", "num_samples": 9, "num_held_out": 1},
    "trained": "refiner",
    "encoders": [{"name": "VAE", "checkpoint": "MicroWan", "frozen": True}],
    "quantizer": {"method": "k-means", "num_classes": 16},
    "sampling": {"positives": "real clips of the class", "negatives": "refined clips of the class"},
    "features": ["mean and deviation of every map"],
    "temperatures": [0.02, 0.2],
    "normalization": None,
    "loss": "drifting",
    "batch_size": 8,
    "steps": 100,
}
HEADER: dict[str, Any] = {"seeds": 0, "data": "clips", "command": "latentloom x"}
#: What record.json held before trainings were part of it.
OLD = {
    **{"date": "2026-01-02T03:04:05Z", "id": "old", "git_branch": "main", "git_commit": "c0ffee"},
    **{"command": "latentloom drift train", "data": "digits", "seeds": [0], "device": "cpu: some, 2 cores"},
    **{"versions": {"python": "3.11.7"}, "status": "finished", "seconds": 1.5, "peak_memory_mb": 300.0},
    **{"peak_device_memory_mb": None, "throughput": {"images": 20.0}, "results": {"kid": None}},
    "decision": "nearer than interpolation",
}


def test_a_training_states_all_its_sections(tmp_path):
    with RunFolder.create(tmp_path, "train", {}, **HEADER, trainings={"refiner": FACTS}) as run:
        run.finish({})
    stored = json.loads((run.path / "record.json").read_text())
    assert stored["trainings"] == {"refiner": FACTS}
    assert RunRecord.read(run.path).trainings["refiner"].steps == 100


@given(st.sets(st.sampled_from(sorted(FACTS)), min_size=1))
def test_every_section_that_is_left_out_is_named(missing):
    given_facts = {name: value for name, value in FACTS.items() if name not in missing}
    with pytest.raises(ConfigError) as raised:
        complete_trainings({"refiner": given_facts})
    assert {name for name in FACTS if f"trainings.refiner.{name}" in str(raised.value)} == missing
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("start", ["at", "create"])
@pytest.mark.parametrize(
    ("trainings", "message"),
    [
        ({}, "lacks its trainings"),
        ({"refiner": {**FACTS, "loss": " "}}, "trainings.refiner.loss"),
        ({"refiner": {**FACTS, "batch_size": 0}}, "trainings.refiner.batch_size"),
        ({"refiner": {**FACTS, "features": []}}, "trainings.refiner.features"),
        ({"refiner": {**FACTS, "sampling": None}}, "temperatures without sampling"),
        ({"refiner": {**FACTS, "quantizer": {"method": "k-means"}}}, "trainings.refiner.quantizer.num_classes"),
        ({"a": FACTS, "b": {**FACTS, "rate": 1}}, "trainings.b.rate"),
    ],
)
def test_a_training_without_its_facts_does_not_start(tmp_path, start, trainings, message):
    place = [tmp_path / "runs", "train"] if start == "create" else [tmp_path / "runs" / "train"]
    with pytest.raises(ConfigError, match=message):
        getattr(RunFolder, start)(*place, {}, **HEADER, trainings=trainings)
    assert list(tmp_path.iterdir()) == []


def test_facts_that_nobody_checked_are_checked_when_the_run_starts(tmp_path):
    facts = TrainingFacts.model_validate(FACTS).model_copy(update={"steps": 0})
    with pytest.raises(ConfigError, match=r"trainings\.refiner\.steps"):
        RunFolder.create(tmp_path / "runs", "train", {}, **HEADER, trainings={"refiner": facts})


def test_a_run_that_trains_nothing_needs_no_facts(tmp_path):
    assert RunFolder.create(tmp_path, "score", {}, **HEADER).record.trainings == {}


def test_what_the_work_measured_itself_stands_in_place_of_what_was_counted(tmp_path):
    with RunFolder.create(tmp_path, "train", {}, **HEADER) as run:
        run.count(5, "pairs")
        run.count(5, "clips")
        run.state_throughput(12.5, "pairs")
    assert run.record.throughput["pairs"] == 12.5
    assert run.record.throughput["clips"] != 12.5


def test_a_run_names_the_curves_and_pages_that_it_leaves(tmp_path):
    with RunFolder.create(tmp_path, "train", {}, **HEADER) as run:
        run.tensorboard().add_scalar("loss", 1.0, 0)
        (run.path / "report.html").write_text("page")
        (run.path / "weights.safetensors").write_text("")
    assert run.record.artifacts == ["report.html", "tensorboard"]


def test_records_from_before_there_were_trainings_are_read(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "record.json").write_text(json.dumps(OLD))
    record = find_run(tmp_path, "old")
    assert (record.trainings, record.decision) == ({}, "nearer than interpolation")
    assert list_runs(tmp_path) == [record]


def test_runs_are_found_at_every_depth_and_by_the_path_of_their_folder(tmp_path, monkeypatch):
    for place in ("drift/first", "drift/second", "micro/first", "alone", "alone/checkpoints/no-run"):
        RunFolder.at(tmp_path / "runs" / place, {"place": place}, **HEADER)
    root = tmp_path / "runs"
    assert [record.id for record in list_runs(root)] == ["first", "second", "first", "alone"]
    assert find_run(root, "drift/first").id == find_run(root, "drift/f").id == "first"
    assert find_run(root, "sec").id == "second"
    with pytest.raises(FileError, match=r"2 runs .* begin with 'first': drift/first, micro/first"):
        find_run(root, "first")
    monkeypatch.chdir(tmp_path)
    assert find_run("nowhere", "runs/micro/first").id == "first"
    assert [record.id for record in list_runs(root / "alone")] == ["alone"]
