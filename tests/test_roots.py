"""Crossings beside SciPy's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from moesim.ground.roots import crossing


@pytest.mark.parametrize("power", [1, 3, 9])
@given(at=st.floats(-3, 3), steep=st.floats(0.1, 5))
def test_crossings_are_scipy_s(power, at, steep):
    def function(x):
        return math.expm1(steep * (x - at)) + (x - at) ** power

    assert crossing(function, -4.0, 4.0) == pytest.approx(brentq(function, -4.0, 4.0), abs=1e-9)


def test_an_end_may_be_the_crossing():
    assert crossing(lambda x: x, 0.0, 3.0) == 0.0
    assert crossing(lambda x: x - 3, 0.0, 3.0) == 3.0


def test_it_takes_few_calls():
    calls = []
    crossing(lambda x: calls.append(x) or math.exp(x) - 2, 0.0, 12.0)
    assert len(calls) < 40


def test_a_function_that_does_not_rise_is_refused():
    with pytest.raises(ValueError, match=r"does not rise through zero between 1\.0 and 2\.0"):
        crossing(lambda x: x, 1.0, 2.0)
