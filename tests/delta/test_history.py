"""The course of a run: which epoch was best, and both of its stored forms."""

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.delta.history import LOSSES, History
from latentloom.delta.validation import Score

BEFORE = Score(cosine=0.5, recall_at_1=0.4, drift=0.0)
figures = st.floats(-1, 1, width=32)
scores = st.builds(Score, figures, st.floats(0, 1), st.sampled_from([0.0, 0.004, 0.006]))


def history(given_scores: list[Score]) -> History:
    made = History(BEFORE)
    for epoch, score in enumerate(given_scores):
        made.append(torch.arange(5.0) + epoch, score, seconds=0.5 * epoch)
    return made


@given(st.lists(scores, min_size=1, max_size=12))
def test_the_best_epoch_is_the_first_of_the_best_that_keep_to_the_constraints(drawn):
    made = history(drawn)
    ranks = [score.rank(BEFORE) for score in drawn]
    assert made.best == ranks.index(max(ranks))
    assert made.best_score == drawn[made.best]
    assert made.num_epochs_since_best == len(drawn) - 1 - made.best
    assert made.best_score.keeps(BEFORE) or not any(score.keeps(BEFORE) for score in drawn)


@given(st.lists(scores, max_size=6))
def test_tensors_and_json_give_back_the_same_course(drawn):
    made = history(drawn)
    from_tensors = History(Score(0, 0, 0))
    from_tensors.load_state_dict(made.state_dict())
    for again in (from_tensors, History.from_json(json.loads(json.dumps(made.to_json())))):
        assert (again.rows, again.best, again.before) == (made.rows, made.best, made.before)
        assert again.seconds == made.seconds


def test_an_empty_history_has_no_epochs():
    empty = History(BEFORE)
    assert (len(empty), empty.num_epochs_since_best, empty.seconds) == (0, 0, 0.0)


def test_columns_name_the_figures_of_a_row():
    stored = history([Score(0.1, 0.2, 0.003)]).to_json()
    row = dict(zip(stored["columns"], stored["rows"][0], strict=True))
    assert [row[name] for name in LOSSES] == [0, 1, 2, 3, 4]
    assert (row["cosine"], row["recall_at_1"], row["drift"], row["seconds"]) == (0.1, 0.2, 0.003, 0.0)
