"""`latentloom runs`: records come back as table and as JSON."""

import json
import subprocess
import sys

import pytest

from latentloom.cli.main import run
from latentloom.runs import RunFolder


@pytest.fixture
def two_runs(tmp_path):
    first = RunFolder.create(
        tmp_path, "score", {"num": 4}, command="latentloom micro score [x]", seeds=[0], data="world"
    )
    first.finish({"colour": 0.5})
    second = RunFolder.create(tmp_path, "build", {"num": 8}, command="latentloom micro build", seeds=[1], data="world")
    return tmp_path, first.record, second.record


def test_list_prints_every_run_oldest_first_with_whole_ids(two_runs, capsys):
    root, first, second = two_runs
    assert run(["runs", "list", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [first.id, second.id]
    assert "finished" in lines[1]
    assert "running" in lines[2]


def test_list_as_json_holds_whole_records_and_nothing_else(two_runs, capsys):
    root, first, second = two_runs
    assert run(["runs", "list", "--root", str(root), "--json", "-"]) == 0
    records = json.loads(capsys.readouterr().out)["runs"]
    assert [record["id"] for record in records] == [first.id, second.id]
    assert records[0]["results"] == {"colour": 0.5}
    assert records[0]["command"] == "latentloom micro score [x]"


def test_show_prints_the_record_of_one_run(two_runs, capsys):
    root, first, _ = two_runs
    assert run(["runs", "show", first.id, "--root", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "latentloom micro score [x]" in shown
    assert "colour" in shown


def test_show_as_json_equals_the_file(two_runs, capsys):
    root, first, _ = two_runs
    assert run(["runs", "show", first.id, "--root", str(root), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((root / first.id / "record.json").read_text())


def test_an_unknown_run_is_one_line_that_names_a_near_one(two_runs, capsys):
    root, first, _ = two_runs
    assert run(["runs", "show", first.id + "x", "--root", str(root)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert first.id in err


def test_an_empty_folder_has_no_runs(tmp_path, capsys):
    assert run(["runs", "list", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no runs in")


def test_listing_and_showing_need_no_torch(two_runs, tmp_path):
    root, first, _ = two_runs
    lines = [["runs", "list"], ["runs", "show", first.id]]
    lines = [[*line, "--root", str(root), "--json", str(tmp_path / "out.json")] for line in lines]
    program = (
        "import sys\n"
        "from latentloom.cli.main import run\n"
        f"assert [run(line) for line in {lines!r}] == [0, 0]\n"
        "assert not {'torch', 'av', 'matplotlib'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
