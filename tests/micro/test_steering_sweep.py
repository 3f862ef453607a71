"""Which attribute follows whose prompt, from clips whose prompt was swapped in some blocks."""

import json

import pytest
import torch

from latentloom.errors import ConfigError, PromptError
from latentloom.micro import default_checkpoint
from latentloom.micro import steering_sweep as sweep_module
from latentloom.micro.attributes import VALUES, Attributes
from latentloom.micro.score import Accuracy, Question, prompt_set
from latentloom.micro.steering_sweep import (
    AttributeSweep,
    QuestionPair,
    question_pairs,
    questions_of_pairs,
    sample_clips,
    sweep_attributes,
)
from latentloom.steering.sweep.parts import Part
from latentloom.steering.sweep.prompts import PromptPair
from latentloom.wan.pipeline import WanPipeline

RED = Attributes("red", "circle", "small", "left", "black")
BLUE = Attributes("blue", "square", "small", "right", "white")
NONE, SOME, ALL = Part(()), Part((2,)), Part(tuple(range(6)))


def pair_of(base: Attributes, injected: Attributes) -> QuestionPair:
    return QuestionPair(Question("base", base), Question("injected", injected), 0)


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    return WanPipeline.load(default_checkpoint(), device="cpu")


# ---- pairs


def test_pairs_differ_in_every_attribute_and_come_from_held_out_questions():
    pairs = question_pairs(100, seed=3)
    assert [list(pair.differing()) for pair in pairs] == [list(VALUES)] * 100
    assert [pair.base for pair in pairs] == prompt_set("verbose", 100, 3)
    assert [pair.seed for pair in pairs] == list(range(3, 103))
    assert pairs == question_pairs(100, seed=3)
    assert len({pair.injected.asked for pair in pairs}) > 40  # the injected prompts vary as the base prompts do


def test_an_attribute_counts_where_both_prompts_mention_it_with_different_values():
    pair = pair_of(RED, BLUE)
    assert pair.differing() == {
        "colour": ("red", "blue"),
        "shape": ("circle", "square"),
        "motion": ("left", "right"),
        "background": ("black", "white"),
    }
    assert pair_of(RED.without("colour"), BLUE).differing().keys() == {"shape", "motion", "background"}


def test_pairs_written_by_hand_ask_for_what_their_words_say():
    first, second = questions_of_pairs(
        [PromptPair("a red circle", "a blue circle", 8), PromptPair("a green box", "a red disc", 9)]
    )
    assert first.differing() == {"colour": ("red", "blue")}
    assert second.differing() == {"colour": ("green", "red"), "shape": ("square", "circle")}
    assert second.seed == 9


def test_pairs_of_which_nothing_can_be_read_are_refused():
    with pytest.raises(PromptError, match="no two pairs differ in the same attribute"):
        questions_of_pairs([PromptPair("a red circle", "a blue circle", 0), PromptPair("a lake", "a wood", 1)])
    with pytest.raises(ConfigError, match="give 2 or more"):
        question_pairs(1)


# ---- outcomes


def test_outcomes_count_whose_value_is_shown():
    pairs = [pair_of(RED, BLUE)] * 4
    green = Attributes("green", "circle", "small", None, "white")
    swept = AttributeSweep(pairs, {SOME: [RED, BLUE, BLUE, green]})
    colour = swept.outcome(SOME, "colour")
    assert (colour.injected, colour.base, colour.neither) == (Accuracy(2, 4), Accuracy(1, 4), Accuracy(1, 4))
    assert swept.outcome(SOME, "motion").neither == Accuracy(1, 4)  # what cannot be read is neither's
    assert swept.outcome(SOME, "background").injected == Accuracy(3, 4)
    assert swept.attributes == ["colour", "shape", "motion", "background"]  # both ask for a small one
    assert swept.shows_injected(SOME, "colour").tolist() == [0.0, 1.0, 1.0, 0.0]
    written = json.loads(json.dumps(swept.to_json()))
    assert written["2"]["colour"]["injected"]["interval"] == pytest.approx([0.1500, 0.8500], abs=1e-3)


def test_pairs_that_agree_in_an_attribute_say_nothing_about_it():
    pairs = [pair_of(RED, BLUE), pair_of(RED, RED), pair_of(BLUE, RED)]
    swept = AttributeSweep(pairs, {ALL: [BLUE, RED, BLUE]})
    assert swept.outcome(ALL, "colour").injected == Accuracy(1, 2)
    assert swept.shows_injected(ALL, "colour").tolist() == [1.0, 0.0]


# ---- the sweep itself, on MicroWan


def test_no_block_is_the_base_prompt_and_all_blocks_the_swap_bit_for_bit(pipeline):
    pairs = question_pairs(2)
    base, injected = ([getattr(pair, side).prompt for pair in pairs] for side in ("base", "injected"))
    seeds = [pair.seed for pair in pairs]
    assert torch.equal(sample_clips(pipeline, pairs, NONE), pipeline.generate(base, seeds=seeds)[0])
    assert torch.equal(sample_clips(pipeline, pairs, ALL), pipeline.generate(injected, seeds=seeds)[0])


def test_all_blocks_turn_every_attribute_that_the_model_follows(pipeline):
    swept = sweep_attributes(pipeline, question_pairs(2), [NONE, ALL, NONE])
    assert list(swept.readings) == [NONE, ALL]
    for name in ("colour", "size", "motion", "background"):
        assert swept.outcome(NONE, name).base == Accuracy(2, 2)
        assert swept.outcome(ALL, name).injected == Accuracy(2, 2)


def test_a_sweep_goes_on_where_it_stopped(pipeline, monkeypatch):
    pairs = question_pairs(2)
    kept = {NONE.key: ["red circle small left -", "- - - - black"]}
    asked = []

    def sample(pipeline, pairs, part, *settings):
        asked.append(part)
        return torch.zeros(len(pairs), 9, 48, 48, 3, dtype=torch.uint8)

    monkeypatch.setattr(sweep_module, "sample_clips", sample)
    swept = sweep_attributes(pipeline, pairs, [NONE, SOME], kept=kept)
    assert asked == [SOME]
    assert swept.readings[NONE] == [RED.without("background"), Attributes(background="black")]
    assert swept.readings[SOME] == [Attributes(background="black")] * 2
    assert kept["2"] == ["- - - - black"] * 2
