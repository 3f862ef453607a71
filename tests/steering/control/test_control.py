"""Control vectors as a type: what they refuse, their algebra, and the operations they turn into."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering.control.vector import ControlVector, combine
from latentloom.steering.plan import DirectionPayload, Plan

HALVES = ((0.0, 0.5), (0.5, 1.0))
SEEDS = st.integers(0, 10**6)
FACTORS = st.floats(-8, 8, width=16)


def control(seed: int = 0, **changes: Any) -> ControlVector:
    directions = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    settings = {"site": "context", "directions": directions, "model": "micro", "windows": HALVES}
    return ControlVector(**{**settings, "provenance": {"seed": seed}, **changes})


def close(first: ControlVector, second: ControlVector) -> bool:
    return torch.allclose(first.directions, second.directions, rtol=1e-5, atol=1e-4)


@given(a=SEEDS, b=SEEDS)
def test_adding_and_subtracting_undo_each_other(a: int, b: int):
    first, second = control(a), control(b)
    assert close(first + second - second, first)
    assert torch.equal((first + second).directions, first.directions + second.directions)
    assert torch.equal((first - second).directions, first.directions - second.directions)


@given(a=SEEDS, b=SEEDS, factor=FACTORS, other=FACTORS)
def test_the_algebra_is_linear(a: int, b: int, factor: float, other: float):
    first, second = control(a), control(b)
    assert close(factor * (first + second), first * factor + second * factor)
    assert close((factor + other) * first, factor * first + other * first)
    assert close(-first, first * -1)
    assert close(combine([first, second], [factor, other]), factor * first + other * second)


def test_dividing_is_multiplying_by_the_inverse():
    assert torch.equal((control() / 4).directions, control().directions / 4)
    with pytest.raises(ConfigError, match="divided by 0"):
        _ = control() / 0


def test_the_scale_is_kept_until_it_is_normalised():
    vector = control(directions=torch.randn(2, 3, 8).mul(5).index_fill(1, torch.tensor(1), 0))
    lengths = vector.normalised().directions.norm(dim=-1)
    assert torch.allclose(lengths, torch.tensor([[1.0, 0.0, 1.0]] * 2), atol=1e-6)
    assert vector.directions[0, 0].norm() > 2
    cosine = vector.cosine(vector.normalised())
    assert torch.allclose(cosine, torch.tensor([[1.0, 0.0, 1.0]] * 2), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_unit_direction_has_length_one_at_any_scale(scale: float):
    lengths = control(directions=torch.randn(2, 3, 8) * scale).normalised().directions.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones(2, 3), atol=1e-6)


def test_cosine_tells_directions_apart_and_their_lengths_not():
    along = torch.zeros(2, 3, 8)
    along[..., 0] = 2
    across = along.roll(1, dims=-1)
    diagonal = control(directions=along + across)
    assert torch.allclose(control(directions=along).cosine(diagonal), torch.full((2, 3), math.sqrt(0.5)))
    assert torch.allclose(control(directions=along).cosine(-diagonal * 9), torch.full((2, 3), -math.sqrt(0.5)))
    assert torch.equal(control(directions=along).cosine(control(directions=across)), torch.zeros(2, 3))


def test_a_result_names_its_operation_and_its_parents():
    red, blue = control(1), control(2)
    assert (red - blue / 2).provenance == {
        "operation": "weighted_sum",
        "weights": [1, -0.5],
        "parents": [{"seed": 1}, {"seed": 2}],
    }
    assert red.normalised().provenance == {"operation": "normalised", "parents": [{"seed": 1}]}
    assert (red.normalised() + blue).provenance["parents"] == [red.normalised().provenance, {"seed": 2}]


def test_the_provenance_of_a_long_sum_stays_short():
    total = control(1)
    for _ in range(200):
        total = total + control(2)
    assert total.provenance == {
        "operation": "weighted_sum",
        "weights": [1, 200],
        "parents": [{"seed": 1}, {"seed": 2}],
    }


def test_a_sum_that_a_file_made_up_is_a_parent_like_any_other():
    odd = {"operation": "weighted_sum", "weights": 3}
    assert (control(provenance=odd) * 2).provenance == {"operation": "weighted_sum", "weights": [2], "parents": [odd]}


def test_nothing_that_is_changed_later_changes_a_control_vector():
    about = {"pairs": ["a red circle"]}
    vector = control(provenance=about)
    about["pairs"].append("a blue circle")
    assert vector.provenance == {"pairs": ["a red circle"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "attention_output"}, "of site context and attention_output"),
        ({"model": "ti2v-5b"}, "of model micro and ti2v-5b"),
        ({"windows": ((0.0, 0.4), (0.5, 1.0))}, "of windows"),
        ({"directions": torch.zeros(2, 4, 8)}, r"\(3, 8\) and \(4, 8\)"),
    ],
)
def test_vectors_that_do_not_belong_together_are_not_combined(changes: dict, message: str):
    for mix in (lambda a, b: a + b, lambda a, b: a.cosine(b), lambda a, b: combine([a, b], [1, 0])):
        with pytest.raises(ConfigError, match=message):
            mix(control(), control(**changes))


@pytest.mark.parametrize("weights", [[], [1.0], [1.0, math.nan], [math.inf, 0.0]])
def test_weights_that_are_no_weights_are_refused(weights: list[float]):
    with pytest.raises(ConfigError, match="weights"):
        combine([control(1), control(2)], weights)


def test_a_sum_beyond_float32_is_refused():
    with pytest.raises(ConfigError, match="infinity"):
        _ = control(directions=torch.full((2, 3, 8), 3e38)) * 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"directions": torch.zeros(2, 3, 8).fill_(math.nan)}, ConfigError, "NaN"),
        ({"directions": torch.full((2, 3, 8), 1e300, dtype=torch.float64)}, ConfigError, "infinity"),
        ({"directions": torch.zeros(1, 3, 8)}, ShapeError, "for 2 windows"),
        ({"directions": torch.zeros(2, 0, 8)}, ShapeError, "windows, blocks, channels"),
        ({"windows": ((0.0, 0.6), (0.5, 1.0))}, ConfigError, "ascending"),
        ({"windows": ((0.5, 1.0), (0.0, 0.5))}, ConfigError, "ascending"),
        ({"windows": ((0.0, 0.5), (0.5, 1.1))}, ConfigError, "ascending"),
        ({"windows": ((0.0, 0.5), (0.5, math.nan))}, ConfigError, "ascending"),
        ({"windows": ((0.0, 0.5), (0.7, 0.7))}, ConfigError, "ascending"),
        ({"model": " "}, ConfigError, "no model"),
        ({"model": "a\nb"}, ConfigError, "no model"),
        ({"provenance": {"loss": math.nan}}, ConfigError, "JSON"),
        ({"provenance": {"rows": torch.zeros(1)}}, ConfigError, "JSON"),
    ],
)
def test_what_cannot_be_a_control_vector_is_refused_in_one_line(changes: dict, error: type, message: str):
    with pytest.raises(error, match=message) as refusal:
        control(**changes)
    assert "\n" not in str(refusal.value)


def test_half_precision_is_kept_as_float32():
    given_half = torch.randn(2, 3, 8).bfloat16()
    vector = control(directions=given_half)
    assert vector.directions.dtype == torch.float32
    assert torch.equal(vector.directions, given_half.float())


def test_each_window_becomes_an_operation_with_its_own_directions():
    vector = control()
    plan = Plan(vector.operations([2.0, -1.0], method="add_keep_norm", side="both", blocks=(1.0, 0.5, 0.0)))
    plan.check(num_blocks=3, dim=8, text_dim=16)
    assert [operation.window for operation in plan.operations] == list(HALVES)
    assert [operation.strengths for operation in plan.operations] == [(2.0, 1.0, 0.0), (-1.0, -0.5, 0.0)]
    assert {(operation.site, operation.method, operation.side) for operation in plan.operations} == {
        ("context", "add_keep_norm", "both")
    }
    for operation, directions in zip(plan.operations, vector.directions, strict=True):
        assert isinstance(operation.payload, DirectionPayload)
        assert torch.equal(operation.payload.vectors, directions)


def test_one_strength_serves_every_window_and_a_zero_direction_leaves_its_block_alone():
    vector = control(directions=control().directions.index_fill(1, torch.tensor(1), 0))
    assert [operation.strengths for operation in vector.operations(3)] == [(3.0, 0.0, 3.0)] * 2
    assert vector.operations()[0].blocks == (0, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "replace"}, "takes no control vector"),
        ({"strengths": [1.0, 1.0, 1.0]}, "3 strengths for 2 windows"),
        ({"blocks": (1.0, 1.0)}, "2 shares for 3 blocks"),
        ({"strengths": 1e6}, "out of range"),
    ],
)
def test_settings_that_fit_no_operation_are_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        control().operations(**settings)
