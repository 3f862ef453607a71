import io
import sys

import pytest

from latentloom.runs import progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_state_rate_and_time_left(capsys, clock):
    for _ in track(100, "draw"):
        clock[0] += 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "draw: 3/100 (3%), 0.5/s, 0:00:06 so far, ETA 0:03:14"
    assert lines[-1] == "draw: 100/100, 0.5/s, done in 0:03:20"
    assert len(lines) == 34


def test_quick_work_prints_one_line_on_standard_error_alone(capsys):
    assert list(track(["a", "b"], "read")) == ["a", "b"]
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("read: 2/2")
    assert len(output.err.splitlines()) == 1


def test_work_of_unknown_length_has_no_eta(capsys, clock):
    for _ in track(iter(range(4)), "read"):
        clock[0] += 5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "read: 1, 0.2/s, 0:00:05 so far"
    assert "ETA" not in "".join(lines)


def test_nothing_to_do_is_no_error(capsys):
    assert list(track(0, "rest")) == []
    assert "rest: 0/0" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(track(3, "draw [all]")) == [0, 1, 2]
    assert "draw [all]" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
    assert "ETA" in terminal.getvalue()


def test_an_error_in_the_loop_passes_through():
    def fail() -> None:
        for _ in track(3, "draw"):
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        fail()
