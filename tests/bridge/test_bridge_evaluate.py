"""Scores tell a bridge that reads its vectors from one that does not, and say what they lack."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bridge_scenes import scene_encoder, scene_pairs, train_scene_bridge

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import BridgeConfig, EvaluationConfig, ModelConfig
from latentloom.bridge.evaluate import evaluate_bridge
from latentloom.bridge.evaluation import BridgeScores
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.pairs import PairSet
from latentloom.bridge.report import write_bridge_report, write_evaluation_report
from latentloom.bridge.score_tables import score_tables, verdict
from latentloom.bridge.sentence_encoders import SentenceEncoder
from latentloom.bridge.train import CURVE_NAME
from latentloom.errors import ConfigError
from latentloom.training import Curve

CONFIG = EvaluationConfig(best_of=3, max_new_tokens=16, num_pairs=100)


@pytest.fixture(scope="module")
def encoder(load_tiny: Callable[[str], Backbone]) -> SentenceEncoder:
    return scene_encoder(load_tiny("llama"))


@pytest.fixture(scope="module")
def pairs(encoder: SentenceEncoder) -> tuple[PairSet, PairSet]:
    return scene_pairs(encoder)


@pytest.fixture(scope="module")
def bridge(load_tiny: Callable[[str], Backbone], pairs: tuple[PairSet, PairSet]) -> LatentBridge:
    return train_scene_bridge(load_tiny("llama"), pairs[0])


@pytest.fixture(scope="module")
def scores(bridge: LatentBridge, pairs: tuple[PairSet, PairSet], encoder: SentenceEncoder) -> BridgeScores:
    train, held_out = pairs
    with torch.no_grad():
        features = bridge.pool(bridge.tokenize(train.texts))
    return evaluate_bridge(bridge, held_out, train, encoder, CONFIG, "joint", 3, features)


@pytest.fixture
def untrained(tiny_backbone: Backbone, pairs: tuple[PairSet, PairSet]) -> LatentBridge:
    return LatentBridge(tiny_backbone, ModelConfig(num_prefix_tokens=2), pairs[0].dim)


def test_a_bridge_that_reads_its_vectors_does_better_with_the_right_ones(scores):
    right, shuffled, none = (scores.losses[f"{name}_vectors"] for name in ("right", "shuffled", "no"))
    assert right.cross_entropy.high < min(shuffled.cross_entropy.low, none.cross_entropy.low)
    assert right.accuracy.low > shuffled.accuracy.high
    texts = scores.texts
    assert texts["greedy"].f1.low > max(texts["greedy_shuffled"].f1.high, texts["greedy_unconditional"].f1.high)
    assert texts["greedy"].cosine.value > texts["greedy_shuffled"].cosine.value + 0.1
    assert texts["greedy"].bleu.value > texts["greedy_shuffled"].bleu.value


def test_held_out_texts_have_no_nearest_training_text_of_the_same_words(scores):
    nearest = scores.texts["nearest_training"]
    assert nearest.exact_match.value == 0.0
    assert 0.5 < nearest.f1.value < 1.0
    assert scores.gains["texts.greedy"]["f1"].value == pytest.approx(scores.texts["greedy"].f1.value - nearest.f1.value)


def test_the_mean_vector_explains_nothing_and_is_no_hit(scores):
    mean, bridge = scores.vectors["mean_vector"], scores.vectors["bridge"]
    assert (mean.r2.value, mean.centred_cosine.value) == (0.0, 0.0)
    assert mean.recall_at_1.value <= 1 / scores.num_texts
    assert bridge.r2.low > 0.1
    assert bridge.recall_at_1.value > 0.5
    assert scores.vectors["ridge"].r2.low > 0.1


def test_the_same_seed_gives_the_same_scores_and_json(scores, bridge, pairs, encoder):
    with torch.no_grad():
        features = bridge.pool(bridge.tokenize(pairs[0].texts)).numpy()  # as they come out of a file
    again = evaluate_bridge(bridge, pairs[1], pairs[0], encoder, CONFIG, "joint", 3, features)
    assert json.dumps(again.to_json()) == json.dumps(scores.to_json())
    assert scores.notes == []
    assert scores.num_texts == len(pairs[1])


def test_what_is_missing_is_said_and_left_out(bridge, pairs):
    scores = evaluate_bridge(bridge, pairs[1], config=CONFIG)
    assert set(scores.texts) == {"greedy", "greedy_shuffled", "greedy_unconditional"}
    assert set(scores.vectors) == {"bridge", "mean_vector"}
    assert scores.texts["greedy"].cosine is None
    assert scores.gains == {}
    assert [word for word in ("encoder", "nearest", "ridge") if not any(word in note for note in scores.notes)] == []
    assert all(sample.best is None and sample.nearest is None for sample in scores.samples)


def test_a_task_is_scored_in_the_direction_that_it_trains(untrained, pairs):
    few = EvaluationConfig(num_pairs=2, best_of=1, max_new_tokens=2)
    reading = evaluate_bridge(untrained, pairs[1], config=few, task="t2l")
    assert (reading.losses, reading.texts, reading.samples) == ({}, {}, [])
    speaking = evaluate_bridge(untrained, pairs[1], config=few, task="l2t")
    assert speaking.vectors == {}
    assert speaking.num_texts == 2
    assert [table.columns[0] for table in score_tables(speaking)] == ["predicted from", "texts"]


def test_a_single_pair_has_no_shuffled_baseline(untrained, pairs):
    scores = evaluate_bridge(untrained, pairs[1], config=EvaluationConfig(num_pairs=1, max_new_tokens=2), task="l2t")
    assert set(scores.losses) == {"right_vectors", "no_vectors"}
    assert any("shuffled" in note for note in scores.notes)


def test_an_encoder_that_did_not_make_the_vectors_is_noticed(untrained, pairs, encoder):
    turned = PairSet(pairs[1].texts, pairs[1].vectors[:, ::-1].copy(), "turned")
    few = EvaluationConfig(num_pairs=4, best_of=1, max_new_tokens=2)
    notes = evaluate_bridge(untrained, turned, encoder=encoder, config=few, task="l2t").notes
    assert any("not the one that made them" in note for note in notes)


def test_widths_that_differ_are_refused_with_both_numbers(untrained, pairs, encoder, tiny_backbone):
    narrow = PairSet(pairs[1].texts, pairs[1].vectors[:, :5].copy(), "narrow")
    with pytest.raises(ConfigError, match=r"width 5.*width 24"):
        evaluate_bridge(untrained, narrow)
    with pytest.raises(ConfigError, match=r"static makes vectors of width 8.*width 24"):
        evaluate_bridge(untrained, pairs[1], encoder=scene_encoder(tiny_backbone, dim=8))
    with pytest.raises(ConfigError, match="num_pairs = 0"):
        evaluate_bridge(untrained, pairs[1], config=EvaluationConfig(num_pairs=0))


def test_a_runs_page_holds_curves_scores_texts_and_settings(scores, tmp_path: Path):
    curve = Curve(tmp_path / CURVE_NAME, 0)
    for step in range(5):
        curve.append(step, text_loss=5 / (1 + step), lr=1e-3)
    page = write_bridge_report(tmp_path, BridgeConfig(), scores, "27 tiny pairs").read_text()
    for text in ("27 tiny pairs", "nearest training text", "best of 3", "model.lora.rank", "text_loss"):
        assert text in page
    assert scores.samples[0].text in page
    assert all(sentence.split("[")[0] in page for sentence in verdict(scores))
    assert page.count("data:image/svg") == 3  # texts, vectors, curves


def test_a_run_without_scores_or_an_evaluation_without_a_curve_has_a_page_too(scores, tmp_path: Path):
    assert "t2l_batch_size" in write_bridge_report(tmp_path, BridgeConfig(), None, "pairs").read_text()
    page = write_evaluation_report(tmp_path, scores, {"bridge": "some.safetensors"}).read_text()
    assert "some.safetensors" in page
    assert scores.samples[0].greedy in page


def test_a_verdict_says_above_only_where_the_whole_interval_is(scores):
    sentence = next(line for line in verdict(scores) if line.startswith("Greedy"))
    gain = scores.gains["texts.greedy"]["f1"]
    expected = "above" if gain.low > 0 else "below" if gain.high < 0 else "not told apart from"
    assert f"{expected} the nearest training text" in sentence
