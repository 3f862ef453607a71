"""A plan holds together or says in one line why not."""

import copy
import math

import jaxtyping
import pytest
import torch

from latentloom.errors import ConfigError
from latentloom.steering.plan import (
    DirectionPayload,
    Operation,
    Plan,
    PlanePayload,
    PromptPayload,
    RowsPayload,
)
from latentloom.tensors import TextEmbeddings

TEXT = TextEmbeddings.from_list([torch.ones(3, 8)])
PROMPT, ROWS, DIRECTION = PromptPayload(TEXT), RowsPayload(TEXT), DirectionPayload(torch.ones(1, 8))


def lerp(**changes) -> Operation:
    settings = {"site": "context", "method": "lerp", "strengths": (1.0, 0.5), "payload": PROMPT, **changes}
    return Operation(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": (0.0, 1.5)}, "strength 1.5 of lerp in block 1 is out of range; use 0 to 1"),
        ({"strengths": (math.nan,)}, "out of range"),
        ({"strengths": (0.0, 0.5), "method": "replace"}, "use 0 or 1"),
        ({"strengths": (101.0,), "method": "add", "payload": DIRECTION}, "-100 to 100"),
        ({"strengths": (-0.1,), "method": "ablate", "payload": DIRECTION}, "0 to 2"),
        ({"payload": DIRECTION}, "lerp on context was given DirectionPayload; it takes PromptPayload or RowsPayload"),
        ({"method": "ablate"}, "ablate on context was given PromptPayload; it takes DirectionPayload"),
        ({"site": "hidden_states", "payload": ROWS}, "it takes PromptPayload or ActivationsPayload"),
        ({"window": (0.5, 0.5)}, "give a start below the end"),
        ({"window": (0.0, 1.1)}, "both from 0 to 1"),
        ({"tokens": (3, 3)}, "a later end"),
    ],
)
def test_an_operation_out_of_range_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError) as refused:
        lerp(**changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "blocks"}, "site='blocks' is unknown; use context, hidden_states, attention_output"),
        ({"method": "multiply"}, "method='multiply' is unknown; use replace, lerp"),
        ({"side": "negative"}, "side='negative' is unknown; use cond, uncond, both"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(changes, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # users run without the checks of annotations
    with pytest.raises(ConfigError, match=message):
        lerp(**changes)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_payload_that_is_not_finite_is_refused(value):
    with pytest.raises(ConfigError, match="NaN or infinities"):
        lerp(payload=PromptPayload(TextEmbeddings.from_list([torch.full((2, 8), value)])))


def test_a_plane_needs_two_directions():
    with pytest.raises(ConfigError, match="span no plane"):
        PlanePayload(torch.ones(1, 8), -2 * torch.ones(1, 8))
    with pytest.raises(ConfigError, match="span no plane"):
        PlanePayload(torch.zeros(1, 8), torch.ones(1, 8))


def test_an_empty_plan_and_one_for_two_depths_are_refused():
    with pytest.raises(ConfigError, match="no operation; give at least one"):
        Plan(())
    with pytest.raises(ConfigError, match=r"blocks; give one number"):
        Plan((lerp(), lerp(strengths=(1.0,))))


def test_a_plan_is_checked_against_the_model():
    plan = Plan((lerp(),))
    plan.check(num_blocks=2, dim=16, text_dim=8)
    with pytest.raises(ConfigError, match="for a model of 2 blocks and this one has 30"):
        plan.check(num_blocks=30, dim=16, text_dim=8)
    with pytest.raises(ConfigError, match="PromptPayload of 8 channels for a model that takes 4096"):
        plan.check(num_blocks=2, dim=16, text_dim=4096)
    three = Operation("hidden_states", "add", (1.0, 1.0), DirectionPayload(torch.ones(3, 8)))
    with pytest.raises(ConfigError, match="3 directions for 2 blocks"):
        Plan((three,)).check(num_blocks=2, dim=8, text_dim=8)


def test_windows_end_before_the_next_begins_and_the_last_one_includes_the_end():
    first, second = lerp(window=(0.0, 0.5)), lerp(window=(0.5, 1.0))
    for step in range(20):
        assert first.acts_at(step / 20) is (step < 10)
        assert second.acts_at(step / 20) is (step >= 10)
    assert second.acts_at(1.0)


def test_sides():
    assert [lerp(side=side).acts_on(True) for side in ("cond", "uncond", "both")] == [True, False, True]
    assert [lerp(side=side).acts_on(False) for side in ("cond", "uncond", "both")] == [False, True, True]


def test_a_plan_survives_a_deep_copy():
    plan = Plan((lerp(), Operation("hidden_states", "add", (1.0, 0.0), DIRECTION)))
    copied = copy.deepcopy(plan)
    assert copied.describe() == plan.describe()
    assert copied.operations[0].payload is not plan.operations[0].payload


def test_the_description_is_json_with_a_picture_of_the_blocks():
    assert Plan((lerp(strengths=(0.0, 0.5)),)).describe() == [
        {
            "site": "context",
            "method": "lerp",
            "blocks": "░█",
            "strengths": [0.0, 0.5],
            "side": "cond",
            "window": [0.0, 1.0],
            "tokens": "text",
            "payload": "PromptPayload",
        }
    ]
