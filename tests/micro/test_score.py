"""The score: intervals, what counts as right, and sets of prompts that can be compared."""

import json
import math
from collections import Counter
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import PromptError
from latentloom.micro.attributes import UNSEEN_PAIRS, VALUES, Attributes, split
from latentloom.micro.lexicon import LEXICONS, parse
from latentloom.micro.score import PROMPT_SETS, Accuracy, Question, chance, prompt_set, questions_of, score_clips, tally
from latentloom.micro.world import draw_clips

COMPARABLE = ("verbose", "terse", "unseen synonyms", "telegraphic")
RED_CIRCLE = Attributes("red", "circle", "small", "left", "black")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (5, 10, 0.23659, 0.76341),
        (10, 10, 0.72247, 1.0),
        (95, 100, 0.88825, 0.97846),
        (1, 1, 0.20655, 1.0),
    ],
)
def test_the_interval_is_wilsons(right: int, total: int, low: float, high: float):
    assert Accuracy(right, total).interval == pytest.approx((low, high), abs=1e-5)


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_an_interval_holds_the_share_and_mirrors_that_of_the_mistakes(counts: tuple[int, int]):
    right, total = counts
    accuracy = Accuracy(right, total)
    low, high = accuracy.interval
    assert 0 <= low <= accuracy.share <= high <= 1
    assert math.copysign(1, low) == 1  # a table would show -0.0
    mirrored_low, mirrored_high = Accuracy(total - right, total).interval
    assert (1 - high, 1 - low) == pytest.approx((mirrored_low, mirrored_high), abs=1e-12)
    wide, narrow = high - low, Accuracy(4 * right, 4 * total).interval
    assert narrow[1] - narrow[0] < wide


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_the_bounds_of_an_interval_solve_the_score_equation(counts: tuple[int, int]):
    right, total = counts
    z = NormalDist().inv_cdf(0.975)
    for bound in Accuracy(right, total).interval:
        assert (right / total - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / total, abs=1e-7)


def test_where_nothing_was_asked_there_is_no_share():
    nothing = Accuracy(0, 0)
    assert math.isnan(nothing.share)
    assert all(math.isnan(bound) for bound in nothing.interval)


def test_an_accuracy_goes_into_json_with_its_interval():
    written = json.loads(json.dumps(Accuracy(5, 10).to_json()))
    assert written["right"] == 5
    assert written["total"] == 10
    assert written["share"] == 0.5
    assert written["interval"] == pytest.approx([0.23659, 0.76341], abs=1e-5)


def test_only_what_was_asked_for_counts():
    questions = [
        Question("a red circle", Attributes("red", "circle")),
        Question("something small", Attributes(size="small")),
    ]
    table = tally(questions, [Attributes("red", "square", "large", "up", "white"), RED_CIRCLE])
    assert {name: (item.right, item.total) for name, item in table.items()} == {
        "colour": (1, 1),
        "shape": (0, 1),
        "size": (1, 1),
        "motion": (0, 0),
        "background": (0, 0),
        "all": (1, 2),
    }


def test_all_is_right_only_where_everything_asked_for_is_right():
    question = Question("x", RED_CIRCLE)
    assert tally([question], [RED_CIRCLE])["all"] == Accuracy(1, 1)
    for name, values in VALUES.items():
        wrong = Attributes(**{**RED_CIRCLE.mentioned(), name: values[-1]})
        assert tally([question], [wrong])["all"] == Accuracy(0, 1)
        table = tally([question], [RED_CIRCLE.without(name)])  # the reader could not tell
        assert table["all"] == Accuracy(0, 1)
        assert [key for key in VALUES if table[key].right == 0] == [name]


def test_questions_and_clips_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        tally([Question("x", RED_CIRCLE)] * 2, [RED_CIRCLE])


def test_clips_that_show_what_was_asked_for_are_right_and_swapped_ones_are_not():
    shown = [RED_CIRCLE, Attributes("green", "square", "large", "down", "white")]
    clips = draw_clips(shown, torch.Generator().manual_seed(0)).permute(0, 2, 3, 4, 1).mul(255).round().byte()
    questions = [Question("x", item) for item in shown]
    assert all(accuracy == Accuracy(2, 2) for accuracy in score_clips(questions, clips).values())
    assert all(accuracy == Accuracy(0, 2) for accuracy in score_clips(questions, clips.flip(0)).values())


def test_a_guess_is_right_once_in_the_number_of_values():
    assert [round(1 / chance(name)) for name in (*VALUES, "all")] == [6, 4, 2, 5, 3, 720]


def test_the_wordings_ask_for_the_same_in_the_same_order():
    asked = [[question.asked for question in prompt_set(name, 150, seed=3)] for name in COMPARABLE]
    assert asked[0] == asked[1] == asked[2] == asked[3]
    prompts = [[question.prompt for question in prompt_set(name, 150, seed=3)] for name in COMPARABLE]
    for first, second in ((a, b) for a in prompts for b in prompts if a is not b):
        assert sum(a == b for a, b in zip(first, second, strict=True)) == 0


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_covers_its_split_evenly_and_nothing_else(name: str):
    choices = split(PROMPT_SETS[name][0])
    num_prompts = 2 * len(choices) + 7
    counts = Counter(question.asked for question in prompt_set(name, num_prompts))
    assert set(counts) == set(choices)
    assert sorted(set(counts.values())) == [2, 3]
    assert not set(counts) & set(split("train"))


def test_only_the_set_of_unseen_pairs_shows_them():
    for name in PROMPT_SETS:
        pairs = {(question.asked.colour, question.asked.shape) for question in prompt_set(name, 140)}
        assert (pairs & set(UNSEEN_PAIRS) == set(UNSEEN_PAIRS)) is (name == "unseen pairs")
        assert (pairs <= set(UNSEEN_PAIRS)) is (name == "unseen pairs")


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_the_prompts_say_what_they_ask_for(name: str):
    for question in prompt_set(name, 140):
        assert parse(question.prompt) == question.asked, question.prompt


def test_the_synonyms_and_shorthand_hold_no_word_that_names_an_attribute_in_training():
    known = {word for words in LEXICONS["seen"].values() for phrase in words for word in phrase.split()}
    known -= {"to", "the", "not"}  # grammar, which the sentences share
    for name in ("unseen synonyms", "telegraphic"):
        for question in prompt_set(name, 68):
            assert not known & set(question.prompt.lower().strip(".").replace(",", "").split()), question.prompt


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_a_set_follows_from_its_seed(name: str):
    assert prompt_set(name, 30, seed=5) == prompt_set(name, 30, seed=5)
    assert prompt_set(name, 30, seed=5) != prompt_set(name, 30, seed=6)


def test_prompts_written_by_hand_are_asked_for_what_their_words_say():
    questions = questions_of(["A crimson ball, please", "something huge that SINKS", "a red circle on white"])
    assert [question.asked.mentioned() for question in questions] == [
        {"colour": "red", "shape": "circle"},
        {"size": "large", "motion": "down"},
        {"colour": "red", "shape": "circle", "background": "white"},
    ]
    assert questions[0].prompt == "A crimson ball, please"


@pytest.mark.parametrize("prompt", ["", "a cat on a mat", "\U0001f534", "redder circles\x00"])
def test_a_prompt_that_mentions_no_attribute_is_refused(prompt: str):
    with pytest.raises(PromptError, match="mentions no attribute") as refusal:
        questions_of(["a red circle", prompt])
    assert repr(prompt) in str(refusal.value)
