"""Runs side by side: only what differs, and every number against the first run's."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import CorruptFileError, FileError
from latentloom.runs import RunFolder
from latentloom.runs.catalog import StoredRun, find_stored_run
from latentloom.runs.comparison import Measure, MetricRow, compare_runs, flattened, numbers


def stored(tmp_path, name: str, settings: dict[str, Any], results: dict[str, Any], **changes: Any) -> StoredRun:
    header = {"seeds": 0, "data": "clips", "command": "latentloom x", **changes}
    RunFolder.at(tmp_path / name, settings, **header).finish(results)
    return find_stored_run(tmp_path, name)


def test_only_settings_that_differ_are_shown_with_dotted_names(tmp_path):
    one = stored(tmp_path, "one", {"lr": 0.1, "model": {"width": 8, "depth": 2}, "tasks": [{"n": 1}]}, {})
    other = stored(tmp_path, "other", {"lr": 0.1, "model": {"width": 9, "depth": 2}, "tasks": [{"n": 2}], "x": "y"}, {})
    settings = dict(compare_runs([one, other]).settings)
    assert settings == {"model.width": (8, 9), "tasks.0.n": (1, 2), "x": (None, "y")}


def test_facts_that_differ_are_shown_and_numbers_of_the_results_are_not_among_them(tmp_path):
    one = stored(tmp_path, "one", {}, {"kid": 1, "curve": [1, 2], "verdict": "better"})
    other = stored(tmp_path, "other", {}, {"kid": 2, "curve": [1, 3], "verdict": "worse"}, data="digits", seeds=[1, 2])
    facts = dict(compare_runs([one, other]).facts)
    assert facts["data"] == ("clips", "digits")
    assert facts["seeds"] == ([0], [1, 2])
    assert facts["results.verdict"] == ("better", "worse")
    assert not {"id", "date", "git_commit", "device", "versions.torch", "results.kid", "results.curve"} & facts.keys()


def test_metrics_are_flattened_and_held_against_the_first_run(tmp_path):
    interval = {"value": 2.0, "low": 1.5, "high": 2.5}
    one = stored(tmp_path, "one", {}, {"linear": {"psnr": interval, "ok": True}, "kid": 0})
    other = stored(tmp_path, "other", {}, {"linear": {"psnr": {**interval, "value": 3.0}}, "kid": 4, "new": [7]})
    rows = {row.name: row for row in compare_runs([one, other]).metrics}
    assert list(rows) == ["linear.psnr", "kid", "new.0"]
    assert rows["linear.psnr"].measures == (Measure(2.0, 1.5, 2.5), Measure(3.0, 1.5, 2.5))
    assert str(rows["linear.psnr"].measures[0]) == "2 (1.5 to 2.5)"
    assert (rows["linear.psnr"].differences, rows["linear.psnr"].ratios) == ((0.0, 1.0), (1.0, 1.5))
    assert rows["kid"].ratios == (None, None)
    assert rows["new.0"].measures == (None, Measure(7))
    assert rows["new.0"].differences == (None, None)


def test_settings_that_are_missing_or_damaged_are_said(tmp_path):
    one = stored(tmp_path, "one", {}, {})
    (one.path / "config.toml").write_text("lr = ")
    with pytest.raises(CorruptFileError, match=r"config\.toml is damaged"):
        compare_runs([one, one])
    (one.path / "config.toml").unlink()
    with pytest.raises(FileError, match="cannot read the settings"):
        compare_runs([one, one])


LEAVES = st.none() | st.booleans() | st.integers(-5, 5) | st.text("ab", max_size=2)
KEYS = st.text("cde", min_size=1, max_size=2)
TREES = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.dictionaries(KEYS, inner, max_size=3), max_leaves=8)
)


@given(TREES)
def test_flattening_keeps_every_leaf_and_numbers_are_the_numeric_ones(tree):
    def leaves(value: Any) -> list[Any]:
        return [leaf for item in value.values() for leaf in leaves(item)] if isinstance(value, dict) else [value]

    flat = list(flattened(tree))
    assert [value for _, value in flat] == leaves(tree)
    numeric = {name: value for name, value in flat if isinstance(value, int) and not isinstance(value, bool)}
    assert {name: measure.value for name, measure in numbers(tree)} == numeric


@given(st.lists(st.floats(0.5, 100), min_size=2, max_size=5))
def test_difference_and_ratio_lead_back_from_the_first_run(values):
    row = MetricRow("x", tuple(Measure(value) for value in values))
    for value, difference, ratio in zip(values, row.differences, row.ratios, strict=True):
        assert difference is not None
        assert ratio is not None
        assert values[0] + difference == pytest.approx(value)
        assert values[0] * ratio == pytest.approx(value)
