"""A curve survives a stop of the run that draws it."""

from latentloom.training import Curve, read_curve


def test_a_resumed_curve_drops_the_lines_past_its_first_step(tmp_path):
    path = tmp_path / "curve.jsonl"
    curve = Curve(path, 0)
    for step in range(5):
        curve.append(step, loss=1 / (step + 1))
    resumed = Curve(path, 3)
    resumed.append(3, loss=9.0)
    assert [(line["step"], line["loss"]) for line in read_curve(path)] == [(0, 1), (1, 0.5), (2, 1 / 3), (3, 9)]


def test_the_seconds_of_a_resumed_curve_go_on_from_the_last_kept_line(tmp_path):
    path = tmp_path / "curve.jsonl"
    path.write_text('{"step": 0, "seconds": 100.0, "loss": 1.0}\n{"step": 9, "seconds": 900.0, "loss": 1.0}\n')
    Curve(path, 5).append(5, loss=0.5)
    seconds = [line["seconds"] for line in read_curve(path)]
    assert seconds[0] == 100.0
    assert 100.0 <= seconds[1] < 110.0
    assert len(seconds) == 2


def test_a_run_from_the_start_begins_an_empty_curve(tmp_path):
    path = tmp_path / "curve.jsonl"
    Curve(path, 0).append(0, loss=1.0)
    Curve(path, 0)
    assert read_curve(path) == []
