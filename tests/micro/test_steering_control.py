"""Control vectors of attributes: pairs of the training split alone, values set and taken out, told in numbers."""

from pathlib import Path

import pytest

from latentloom.errors import ConfigError
from latentloom.micro import default_checkpoint, steering_control
from latentloom.micro.attributes import VALUES, is_held_out, is_unseen_pair
from latentloom.micro.lexicon import parse
from latentloom.micro.score import Accuracy
from latentloom.micro.steering_control import (
    AblationScore,
    Gallery,
    attribute_pairs,
    choose_strength,
    gallery,
    score_ablation,
    score_value,
    values_of,
)
from latentloom.micro.steering_control_report import verdict, write_control_report
from latentloom.steering.control.fit import fit_control
from latentloom.steering.control.record import record_pairs
from latentloom.steering.control.vector import ControlVector
from latentloom.wan.pipeline import WanPipeline


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    return WanPipeline.load(default_checkpoint(), device="cpu")


@pytest.fixture(scope="module")
def colours(pipeline: WanPipeline) -> dict[str, ControlVector]:
    family = {}
    for value in VALUES["colour"]:
        pairs = attribute_pairs("colour", value, 24)
        positive, negative = (pipeline.encode([pair[side] for pair in pairs]) for side in (0, 1))
        recorded = record_pairs(pipeline, positive, negative, list(range(24)), "context")
        family[value] = fit_control(*recorded, site="context", model="micro").control
    return family


@pytest.mark.parametrize("attribute", VALUES)
def test_pairs_differ_in_the_attribute_alone_and_no_combination_is_held_out(attribute):
    for value in VALUES[attribute]:
        for positive, negative in attribute_pairs(attribute, value, 20, seed=3):
            with_value, without = parse(positive), parse(negative)
            assert getattr(with_value, attribute) == value
            assert getattr(without, attribute) != value
            assert with_value.without(attribute) == without.without(attribute)
            assert not any(is_held_out(item) or is_unseen_pair(item) for item in (with_value, without))


def test_pairs_repeat_from_their_seed_and_unknown_names_are_refused():
    assert attribute_pairs("shape", "cross", 5, seed=1) == attribute_pairs("shape", "cross", 5, seed=1)
    assert attribute_pairs("shape", "cross", 5, seed=1) != attribute_pairs("shape", "cross", 5, seed=2)
    with pytest.raises(ConfigError, match="attribute 'color' is unknown; use colour, shape"):
        values_of("color")
    with pytest.raises(ConfigError, match="colour 'pink' is unknown; use red, green"):
        attribute_pairs("colour", "pink", 5)
    with pytest.raises(ConfigError, match="give 1 or more"):
        attribute_pairs("colour", "red", 0)


def test_a_colour_is_set_on_held_out_clips_and_the_rest_is_kept(pipeline, colours):
    score = score_value(pipeline, "colour", colours, "purple", 4.0, num_prompts=6, seed=5)
    assert score.moved.total == 6
    assert score.moved.share >= 0.8
    assert score.kept["background"].share >= 0.9
    assert score.kept["motion"].share >= 0.6
    assert score.to_json()["moved"]["right"] == score.moved.right


def test_taking_the_span_out_leaves_no_more_of_the_colour_than_a_guess(pipeline, colours):
    score = score_ablation(pipeline, "colour", colours, num_prompts=12, seed=5)
    assert score.plain["colour"].share >= 0.9
    assert score.times_chance < 1.5
    assert score.ablated["background"].share >= 0.9


def test_a_strength_is_chosen_from_those_on_offer(pipeline, colours, monkeypatch):
    monkeypatch.setattr(steering_control, "STRENGTHS", (0.1, 4.0))
    assert choose_strength(pipeline, "colour", colours, "cyan", num_prompts=2) == 4.0


def test_the_page_shows_every_value_and_says_what_was_found(pipeline, colours, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(steering_control, "NUM_SHOWN", 1)
    score = score_value(pipeline, "colour", colours, "red", 4.0, num_prompts=1)
    ablation = AblationScore(
        "colour", {name: Accuracy(4, 4) for name in VALUES}, {name: Accuracy(1, 4) for name in VALUES}
    )
    shown: Gallery = gallery(pipeline, colours, {"red": 4.0})
    assert list(shown.clips) == ["plain", "taken out", "set to red"]
    write_control_report(tmp_path / "report.html", colours, [score], ablation, shown)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<video") == 3 * len(shown.prompts)
    assert "Setting the colour" in page
    assert verdict([score], ablation).endswith("leaves 1.50 times what a guess reads of the colour.")
