"""Somebody decides about a run once it has ended; what was decided before is kept."""

import pytest

from latentloom.errors import ConfigError
from latentloom.runs import RunFolder, RunRecord
from latentloom.runs.catalog import StoredRun, find_stored_run
from latentloom.runs.decisions import decide
from latentloom.runs.record import Decision


def finished(tmp_path, words: str | None = None) -> StoredRun:
    RunFolder.at(tmp_path / "run", {}, seeds=0, data="clips").finish({"kid": 0.5}, decision=words)
    return find_stored_run(tmp_path, "run")


def choices(record: RunRecord) -> list[tuple[str, str] | str | None]:
    every = [*record.earlier_decisions, record.decision]
    return [(item.choice, item.why) if isinstance(item, Decision) else item for item in every]


def test_a_decision_and_its_reason_stand_in_the_record(tmp_path):
    decide(finished(tmp_path), "keep", " beats the baseline ")
    record = RunRecord.read(tmp_path / "run")
    assert choices(record) == [("keep", "beats the baseline")]
    assert record.results == {"kid": 0.5}
    assert isinstance(record.decision, Decision)
    assert record.decision.date >= record.date


def test_the_words_of_the_run_give_way_and_stay_in_the_history(tmp_path):
    decide(finished(tmp_path, "nearer than interpolation"), "drop", "too slow")
    assert choices(RunRecord.read(tmp_path / "run")) == ["nearer than interpolation", ("drop", "too slow")]


def test_a_decision_is_replaced_only_on_demand(tmp_path):
    run = finished(tmp_path)
    decide(run, "keep", "first")
    with pytest.raises(ConfigError, match="run is decided: keep, because 'first'; replace it with --replace"):
        decide(run, "drop", "second")
    assert choices(decide(run, "drop", "second", replace=True)) == [("keep", "first"), ("drop", "second")]
    assert choices(RunRecord.read(run.path)) == [("keep", "first"), ("drop", "second")]


@pytest.mark.parametrize("why", ["", " \n"])
def test_a_decision_without_a_reason_is_refused(tmp_path, why):
    run = finished(tmp_path)
    with pytest.raises(ConfigError, match="say why"):
        decide(run, "keep", why)
    assert RunRecord.read(run.path).decision is None


def test_a_run_that_has_not_ended_is_not_decided(tmp_path):
    RunFolder.at(tmp_path / "run", {}, seeds=0, data="clips")
    with pytest.raises(ConfigError, match="still running"):
        decide(find_stored_run(tmp_path, "run"), "keep", "looks well")


def test_a_later_run_in_the_folder_is_undecided_and_knows_what_was_decided(tmp_path):
    decide(finished(tmp_path, "words"), "keep", "first")
    record = finished(tmp_path).record
    assert choices(record) == ["words", ("keep", "first"), None]
