"""Generating and reading one clip per question."""

import json

import pytest
import torch

from latentloom.micro.attributes import VALUES
from latentloom.micro.evaluate import evaluate, evaluate_reader
from latentloom.micro.score import Accuracy, prompt_set, questions_of
from latentloom.wan.pipeline import WanPipeline


def test_a_model_that_follows_every_prompt_is_always_right(listener):
    result = evaluate(listener(), "verbose", prompt_set("verbose", 20))
    assert result.accuracy == dict.fromkeys([*VALUES, "all"], Accuracy(20, 20))
    assert result.name == "verbose"
    assert result.read == [question.asked for question in result.questions]


def test_a_model_that_ignores_colour_loses_colour_alone(listener):
    questions = questions_of([f"a {colour} square on white" for colour in VALUES["colour"]])
    accuracy = evaluate(listener(ignored=("colour",)), "colours", questions).accuracy
    assert accuracy["colour"] == Accuracy(1, 6)  # it always draws red
    assert accuracy["shape"] == accuracy["background"] == Accuracy(6, 6)
    assert accuracy["all"] == Accuracy(1, 6)
    assert accuracy["motion"].total == 0


def test_every_question_has_its_own_noise_counted_from_the_seed(listener):
    model = listener()
    questions = prompt_set("terse", 35)
    evaluate(model, "terse", questions, seed=100)
    assert [seed for _, seeds in model.calls for seed in seeds] == list(range(100, 135))
    assert [prompt for prompts, _ in model.calls for prompt in prompts] == [question.prompt for question in questions]
    assert max(len(prompts) for prompts, _ in model.calls) <= 16  # a set of thousands must fit into memory


def test_a_clip_does_not_depend_on_how_many_there_are(tiny_checkpoint):
    pipeline = WanPipeline.load(tiny_checkpoint, device="cpu")
    questions = prompt_set("verbose", 3)
    together = evaluate(pipeline, "verbose", questions, seed=5)
    alone = evaluate(pipeline, "verbose", questions[2:], seed=7)
    assert together.clips.shape == (3, 9, 48, 48, 3)
    difference = together.clips[2].int() - alone.clips[0].int()
    assert difference.abs().max() <= 1  # a batch of another size rounds otherwise


def test_a_change_of_the_embeddings_reaches_the_model(tiny_checkpoint):
    pipeline = WanPipeline.load(tiny_checkpoint, device="cpu")
    question = prompt_set("verbose", 1)
    lengths = []

    def silence(embeddings):
        lengths.append(embeddings.lengths.tolist())
        return embeddings.from_list([tokens * 0 for tokens in embeddings.to_list()])

    plain = evaluate(pipeline, "plain", question)
    silenced = evaluate(pipeline, "silenced", question, adjust=silence)
    assert len(lengths) == 1
    assert not torch.equal(plain.clips, silenced.clips)


def test_the_reader_is_right_on_drawn_clips_and_lost_behind_an_untrained_vae(tiny_checkpoint):
    pipeline = WanPipeline.load(tiny_checkpoint, device="cpu")
    questions = prompt_set("verbose", 20)
    drawn, rebuilt = evaluate_reader(pipeline, questions)
    assert drawn.accuracy["all"] == Accuracy(20, 20)
    assert drawn.clips.shape == rebuilt.clips.shape == (20, 9, 48, 48, 3)
    assert rebuilt.accuracy["all"].right < 10
    assert [drawn.name, rebuilt.name] == ["drawn", "drawn, through the VAE"]
    again = evaluate_reader(pipeline, questions)[0]
    assert torch.equal(drawn.clips, again.clips)


def test_an_evaluation_goes_into_json(listener):
    result = evaluate(listener(), "by hand", questions_of(["a red circle", "a large cross"]))
    written = json.loads(json.dumps(result.to_json(), allow_nan=True))
    assert written["num_prompts"] == 2
    assert written["seconds_per_clip"] == pytest.approx(result.seconds / 2)
    assert written["accuracy"]["colour"]["total"] == 1
    assert list(written["accuracy"]) == [*VALUES, "all"]
