"""The learning-rate factor rises, stays and falls as promised."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentloom.training import trapezoid
from latentloom.training.schedules import warmup_constant, warmup_cosine


@given(
    num_steps=st.integers(1, 500),
    warmup=st.integers(0, 50),
    decay_share=st.floats(0, 1),
)
def test_the_factor_stays_above_zero_and_at_most_one_and_never_rises_again_once_it_fell(num_steps, warmup, decay_share):
    factors = [trapezoid(step, num_steps, warmup=warmup, decay_share=decay_share) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_a_run_of_ten_steps_with_two_of_warmup_and_half_of_decay():
    factors = [trapezoid(step, 10, warmup=2, decay_share=0.5) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_without_warmup_and_decay_the_factor_is_one():
    assert {trapezoid(step, 7, decay_share=0.0) for step in range(7)} == {1.0}


def test_by_default_the_last_45_percent_fall():
    assert trapezoid(55, 100) == 1.0
    assert trapezoid(56, 100) == pytest.approx(44 / 45)
    assert trapezoid(99, 100) == pytest.approx(1 / 45)


def test_a_constant_rate_rises_over_the_warmup_and_stays():
    assert [warmup_constant(step, warmup=4) for step in range(7)] == [0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert warmup_constant(0) == 1.0


def test_a_cosine_falls_from_one_through_a_half_to_almost_nothing():
    factors = [warmup_cosine(step, 12, warmup=2) for step in range(12)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[11] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


@given(num_steps=st.integers(1, 300), warmup=st.integers(0, 400))
def test_both_rise_to_at_most_one_and_a_cosine_never_rises_after_its_warmup(num_steps, warmup):
    constant = [warmup_constant(step, warmup=warmup) for step in range(num_steps)]
    cosine = [warmup_cosine(step, num_steps, warmup=warmup) for step in range(num_steps)]
    assert constant[:warmup] == cosine[:warmup] == sorted(cosine[:warmup])
    assert cosine[warmup:] == sorted(cosine[warmup:], reverse=True)
    assert all(0 < factor <= 1 for factor in constant + cosine)
