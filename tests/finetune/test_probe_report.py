"""A report is a folder with its tables, pictures and inputs, which no two runs share."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from latentloom.errors import FileError
from latentloom.finetune.probes.report import ProbeReport, describe_files, require_report_folder


def filled() -> ProbeReport:
    report = ProbeReport("keys", "Title")
    report.heading("Part")
    report.table(("name", "value"), [("a|b", 0.123456), ("c", None)])
    report.csv("all", ("name", "value"), [("a,b", 0.123456789)], "everything")
    figure = Figure()
    figure.subplots().plot([1, 2])
    report.figure("curve", figure, "What it shows")
    return report


def test_a_folder_holds_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "input.bin").write_bytes(b"abc")
    inputs = {"file": describe_files([tmp_path / "input.bin"])}
    page, summary = filled().write(tmp_path / "out", "run", inputs, {"cap": 0.1}, {"ratio": float("inf")})
    text = page.read_text()
    assert "| a\\|b | 0.1235 |" in text
    assert "![What it shows](curve.png)" in text
    assert str(tmp_path / "input.bin") in text
    assert sorted(file.name for file in page.parent.iterdir()) == ["all.csv", "curve.png", "report.md", "summary.json"]
    assert list(csv.reader((page.parent / "all.csv").open())) == [["name", "value"], ["a,b", "0.123456789"]]
    with Image.open(page.parent / "curve.png") as picture:
        picture.verify()
    written = json.loads((page.parent / "summary.json").read_text())
    assert written["inputs"] == summary["inputs"]
    assert written["inputs"]["file"][0]["sha256"] == hashlib.sha256(b"abc").hexdigest()
    assert written["results"] == {"ratio": None}
    assert written["tool"] == "latentloom inspect keys"
    assert {"command", "date", "versions", "git_commit"} <= written.keys()


def test_runs_of_one_name_in_one_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pages = [filled().write(None, "a name/with: signs", {}, {}, {})[0] for _ in range(3)]
    assert len({page.parent for page in pages}) == 3
    assert all(page.parent.parent == Path("reports/keys") for page in pages)
    assert all("a-name-with-signs" in page.parent.name for page in pages)


def test_contents_that_were_not_read_are_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"abcd")
    assert describe_files([tmp_path / "w"], hashed=False) == [{"path": str(tmp_path / "w"), "bytes": 4, "sha256": None}]


def test_a_place_that_cannot_be_written_to_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        require_report_folder(tmp_path / "file", "keys")
    require_report_folder(tmp_path / "new", "keys")
    assert not (tmp_path / "new").exists()
