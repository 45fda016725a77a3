"""Rents drawn within what is asked for an offer."""

from dataclasses import replace

import numpy as np
from worlds import offer, pool, scenario

from moesim.deployments.deployed import of_role_all
from moesim.deployments.pools import estimator_of
from moesim.deployments.ranges import drawn_ranges, drawn_rents, intervals
from moesim.deployments.summary import summarize
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel

RENT, LOW, HIGH = 1e-3, 0.8e-3, 2e-3


def banded():
    """A world in which a node is asked for at several prices."""
    world = scenario("mistralai/Mixtral-8x7B-v0.1", short=True)
    dear = replace(offer(), rent=RENT, rent_low=LOW, rent_high=HIGH)
    return replace(world, hardware=replace(world.hardware, offers=(dear,)))


def test_the_ends_of_a_band_are_the_tenth_and_the_ninetieth_percentile():
    drawn = drawn_rents(banded(), 0, 64)["nvidia/hgx-h200"]
    np.testing.assert_allclose(np.quantile(drawn, [0.1, 0.9]), [LOW, HIGH], rtol=1e-12)
    np.testing.assert_allclose(np.median(drawn), RENT, rtol=0.01)  # between two of 64 quantiles
    assert drawn.min() >= 0


def test_a_rent_without_a_band_is_certain():
    world = scenario("mistralai/Mixtral-8x7B-v0.1", short=True)
    (rent,) = (each.rent for each in world.hardware.offers)
    np.testing.assert_array_equal(drawn_rents(world, 0, 5)["nvidia/hgx-h200"], rent)


def test_a_price_per_token_is_as_unsure_as_the_rent():
    world = banded()
    estimator = estimator_of(world, table_of([pool(Parallel(tp=8, ep=8))]), seed=0)
    estimates = estimator.estimate(np.arange(1))
    deployed = of_role_all(estimator.table, np.zeros(2, int), np.array([1, 2]))
    ranges = drawn_ranges(world, estimator, deployed)
    found = intervals(summarize(world, deployed, estimates), ranges, 0, "assumed")
    assert found["price"].low <= found["price"].mid * LOW / RENT * 1.0001
    assert found["price"].high >= found["price"].mid * HIGH / RENT * 0.9999
    np.testing.assert_allclose(ranges.drawn["price"][1], 2 * ranges.drawn["price"][0])  # one draw for all plans
