"""`latentloom runs compare` and `decide`: tables, JSON, a page, and decisions that are read back."""

import json

import pytest

from latentloom.cli.main import run
from latentloom.runs import RunFolder


@pytest.fixture
def root(tmp_path):
    """Three runs below a folder: two trainings of one kind, nested, and one that is still going on."""
    for name, rate, psnr in (("first", 0.1, 20.0), ("second", 0.2, 25.0)):
        header = {"command": f"latentloom drift train --lr {rate}", "seeds": [0], "data": "clips"}
        results = {"linear": {"psnr": {"value": psnr, "low": psnr - 1, "high": psnr + 1}}}
        RunFolder.at(tmp_path / "drift" / name, {"lr": rate, "width": 8}, **header).finish(results)
    RunFolder.at(tmp_path / "third", {}, seeds=[0], data="clips", command="latentloom micro build")
    return tmp_path


def refusal(capsys, *arguments: str) -> str:
    assert run(["runs", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_runs_are_compared_in_a_table(root, capsys):
    assert run(["runs", "compare", "first", str(root / "drift" / "second"), "--root", str(root)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["lr", "0.1", "0.2"] in lines
    assert ["linear.psnr", "20", "(19", "to", "21)", "25", "(24", "to", "26)", "+5", "1.25"] in lines
    assert not any(line[:1] == ["width"] for line in lines)


def test_a_comparison_as_json_holds_values_differences_and_ratios(root, capsys):
    assert run(["runs", "compare", "drift/first", "drift/second", "--root", str(root), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["name"] for item in told["runs"]] == ["drift/first", "drift/second"]
    assert told["settings"] == {"lr": [0.1, 0.2]}
    assert told["facts"]["command"] == ["latentloom drift train --lr 0.1", "latentloom drift train --lr 0.2"]
    (metric,) = told["metrics"]
    assert metric["values"][1] == {"value": 25.0, "low": 24.0, "high": 26.0}
    assert (metric["differences"], metric["ratios"]) == ([0.0, 5.0], [1.0, 1.25])


def test_a_comparison_as_a_page_holds_the_same_tables(root, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run(["runs", "compare", "first", "second", "third", "--root", str(root), "--html", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    for part in ("drift/second", "Settings that differ", "Metrics", "25 (24 to 26)", "C / A", "latentloom micro build"):
        assert part in text
    assert "http" not in text.split("</style>")[-1]


def test_decisions_are_written_listed_and_replaced(root, capsys):
    place = ["--root", str(root)]
    assert run(["runs", "decide", "first", "--keep", "--why", "nearer [by 5 dB]", *place]) == 0
    assert run(["runs", "list", *place]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["drift/first"]]
    assert line.split()[:3] == ["drift/first", "finished", "keep"]
    assert "--replace" in refusal(capsys, "decide", "first", "--drop", "--why", "slow", *place)
    assert run(["runs", "decide", "first", "--drop", "--why", "slow", "--replace", *place]) == 0
    assert run(["runs", "show", str(root / "drift" / "first"), "--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (record["decision"]["choice"], record["decision"]["why"]) == ("drop", "slow")
    assert [earlier["why"] for earlier in record["earlier_decisions"]] == ["nearer [by 5 dB]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "first"], "two or more"),
        (["compare", "first", "drift/first"], "names a run twice"),
        (["compare", "first", "fourth"], "no run 'fourth'"),
        (["decide", "first", "--why", "x"], "neither of --keep and --drop"),
        (["decide", "first", "--keep", "--drop", "--why", "x"], "both of --keep and --drop"),
        (["decide", "first", "--keep"], "--why"),
        (["decide", "third", "--keep", "--why", "x"], "still running"),
    ],
)
def test_mistakes_are_one_line(root, capsys, arguments, message):
    assert message in refusal(capsys, *arguments, "--root", str(root))


def test_the_list_says_what_a_run_trains(root, capsys):
    sections = {
        **{"data": {"pattern": "p", "shards": None, "num_samples": 3, "num_held_out": None}, "trained": "refiner"},
        **{"encoders": None, "quantizer": None, "sampling": None, "features": None, "temperatures": None},
        **{"normalization": None, "loss": "mse", "batch_size": 8, "steps": 40},
    }
    RunFolder.at(root / "fourth", {}, seeds=0, data="d", command="x" * 300, trainings={"refiner": sections}).finish({})
    assert run(["runs", "list", "--root", str(root)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if line.split()[:1] == ["fourth"]]
    assert line.split()[1:3] == ["finished", "0:00:00"]
    assert "refiner: 40 steps of 8" in line
    assert max(map(len, lines)) <= 160
