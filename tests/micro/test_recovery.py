"""The share of a gap that is won back, from evaluations made by hand."""

import json
import warnings

import pytest
import torch
from pydantic_core import to_json

from latentloom.micro.attributes import Attributes
from latentloom.micro.evaluate import Evaluation
from latentloom.micro.recovery import FOREIGN, KNOWN, Recovery, evaluate_adjusted, recovery
from latentloom.micro.score import Question, prompt_set, tally

ASKED = Attributes(colour="red", shape="circle")
RIGHT = Attributes(colour="red", shape="circle", size="small")  # nobody asked for the size
WRONG = Attributes(colour="red", shape="square")


def evaluation(right: list[int]) -> Evaluation:
    """One question per number: 1 where the clip shows all that was asked for, 0 where only the colour."""
    questions = [Question("a red circle", ASKED)] * len(right)
    read = [RIGHT if value else WRONG for value in right]
    clips = torch.zeros(len(right), 1, 1, 1, 3, dtype=torch.uint8)
    return Evaluation("by hand", questions, clips, read, tally(questions, read), 1.0)


def test_the_share_counts_clips_that_are_right_in_everything_asked_for():
    known, foreign, adjusted = evaluation([1] * 9 + [0]), evaluation([1] + [0] * 9), evaluation([1] * 7 + [0] * 3)
    found = recovery(known, foreign, adjusted)
    assert found.share == pytest.approx(6 / 8)
    assert 0 < found.low < found.share < found.high <= 1
    assert recovery(known, foreign, known).share == pytest.approx(1)
    nothing = recovery(known, foreign, foreign)
    assert (nothing.share, nothing.low, nothing.high) == (0, 0, 0)
    assert recovery(known, evaluation([1] * 5 + [0] * 5), foreign).share == pytest.approx(-1)


def test_more_prompts_narrow_the_interval_and_a_seed_fixes_it():
    def found(times: int, seed: int = 0) -> Recovery:
        patterns = [1, 1, 1, 1, 0], [0, 0, 0, 1, 0], [0, 1, 0, 1, 0]
        known, foreign, adjusted = (evaluation(pattern * times) for pattern in patterns)
        return recovery(known, foreign, adjusted, seed)

    wide, narrow = found(4), found(40)
    assert narrow.share == wide.share == pytest.approx(1 / 3)
    assert narrow.high - narrow.low < 0.5 * (wide.high - wide.low)
    assert narrow == found(40) != found(40, seed=1)


@pytest.mark.parametrize("foreign", [[1, 1, 0], [1, 1, 1]])
def test_where_there_is_no_gap_there_is_no_share(foreign: list[int]):
    known = evaluation([0, 0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = recovery(known, evaluation(foreign), known)
    stored = json.loads(to_json(found.to_json(), inf_nan_mode="null"))
    assert stored == {"share": None, "interval": [None, None]}


def test_every_adjustment_answers_the_same_questions_from_the_same_noise(listener):
    seen = []

    def adjust(embeddings):
        seen.append(len(embeddings))
        return embeddings

    results = evaluate_adjusted(listener(), {"none": None, "some": adjust}, 2, seed=5)
    assert list(results) == ["none", "some"]
    for sets in results.values():
        assert list(sets) == [KNOWN, *FOREIGN]
        assert all(item.questions == prompt_set(name, 2, 5) for name, item in sets.items())
    for name in results["none"]:
        assert torch.equal(results["none"][name].clips, results["some"][name].clips)
