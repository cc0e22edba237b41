"""Learning-rate schedules."""

import pytest

from difftrain.steps.schedules import Constant, Cosine, Linear, Sine


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine()])
def test_warm_up_rises_to_the_full_rate(schedule):
    factors = [schedule.factor(step, 4, 20) for step in range(6)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_constant_stays():
    assert {Constant().factor(step, 0, 10) for step in range(10)} == {1.0}


def test_linear_falls_in_a_line():
    assert [Linear().factor(step, 0, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_cosine_is_half_in_the_middle_and_zero_at_the_end():
    assert Cosine().factor(5, 0, 10) == pytest.approx(0.5)
    assert Cosine().factor(10, 0, 10) == pytest.approx(0.0)


def test_cosine_matches_transformers():
    # Golden: transformers get_cosine_schedule_with_warmup(opt, 0, 10) factors at steps 0, 3, 7.
    assert [Cosine().factor(step, 0, 10) for step in (0, 3, 7)] == pytest.approx([1.0, 0.793893, 0.206107], abs=1e-6)


def test_sine_rises_to_the_middle_and_falls_and_is_never_zero_in_a_step():
    factors = [Sine().factor(step, 0, 9) for step in range(9)]
    assert max(factors) == factors[4] == pytest.approx(1.0)
    assert factors == pytest.approx(factors[::-1])
    assert min(factors) == pytest.approx(0.309017, abs=1e-6)  # sin(pi / 10)
