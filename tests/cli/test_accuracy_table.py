"""Accuracies as a table on the terminal."""

import torch

from latentloom.cli.accuracy_table import print_accuracy
from latentloom.micro.attributes import VALUES, Attributes
from latentloom.micro.evaluate import Evaluation
from latentloom.micro.score import Accuracy, Question


def evaluation(name: str, right: int, total: int) -> Evaluation:
    accuracy = {attribute: Accuracy(right, total) for attribute in [*VALUES, "all"]}
    accuracy["motion"] = Accuracy(0, 0)
    questions = [Question("x", Attributes())] * total
    return Evaluation(name, questions, torch.zeros(total, 1, 1, 1, 3, dtype=torch.uint8), [], accuracy, 1.0)


def test_a_row_per_set_with_percent_intervals_and_a_guess(capsys):
    print_accuracy([evaluation("verbose", 95, 100), evaluation("by hand", 0, 7)])
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert header[:2] == ["prompts", "n"]
    assert [word for word in header[2:] if word != "%"] == [*VALUES, "all"]
    assert rows[0][:4] == ["verbose", "100", "95.0", "(89-98)"]
    assert rows[0].count("95.0") == 5
    assert rows[0].count("-") == 1  # nothing asked for motion
    assert rows[1][:5] == ["by", "hand", "7", "0.0", "(0-35)"]
    assert rows[2] == ["a", "guess", "16.7", "25.0", "50.0", "20.0", "33.3", "0.1"]


def test_a_line_is_not_broken_off_a_terminal(capsys):
    print_accuracy([evaluation("a set of prompts with a long name", 399, 400)])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 3
    assert lines[1].count("99.8 (99-100)") == 5
