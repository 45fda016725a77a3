"""Serving under a routing that changes: simulations go through the steps that estimates do."""

from dataclasses import replace

import numpy as np
import pytest
import worlds
from test_following import DYNAMOE, EPLB, NEEDED, PADDED, REBALANCE, plan, step, world
from test_simulation import serving

import moesim
from moesim.deployments.arrangements import arrangements
from moesim.deployments.drifting import drifted, followed, stretched
from moesim.deployments.pools import DRAWS
from moesim.deployments.serving.ticks import PER_SECOND
from moesim.deployments.tabulation import tabulate
from moesim.plans.plan import Policy
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

NONE = Policy(name="none")
TUTEL = Policy(name="tutel")
BATCH = Policy(name="chunked", settings={"max_batch": 32})
BUSY = Serving(
    requests=Requests(
        arrivals=Arrivals(generator="closed", concurrency=8 * 32),
        input=Lengths(generator="constant", mean=64),
        output=Lengths(generator="constant", mean=600),
    ),
    horizon=1500,
    warm_up=500,
)
"""As many requests in flight as the replica may hold, nearly all of whose steps decode."""


def drifting(**settings):
    return world(workload=BUSY, **settings)


def way(scenario, chosen):
    drawn = arrangements(scenario, seed=0, draws=DRAWS)
    (pool,) = chosen.pools
    found = followed(scenario, pool, drawn)
    return found, drifted(found, tabulate(scenario, pool, drawn, most=256))


@pytest.mark.parametrize(
    ("reacting", "policies"),
    [
        (NONE, {"placement": EPLB}),
        (REBALANCE, {"placement": EPLB}),
        (replace(REBALANCE, settings={"every": 50, "background": True}), {"placement": EPLB}),
        (DYNAMOE, {"gating": PADDED}),
        (TUTEL, {"gating": NEEDED}),
        (Policy(name="conventional", settings={"cool_down": 0}), {"gating": NEEDED}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_clock_takes_as_long_as_the_walk(reacting, policies):
    found, swaps = way(drifting(cv=0.3), plan(reacting, batching=BATCH, **policies))
    once = sum(swap.wait + swap.stall for swap in swaps) / PER_SECOND
    assert once == pytest.approx(found.walk.total, rel=1e-6)
    assert sum(swap.moved for swap in swaps) == sum(change.moved for _, change in found.walk.changes)
    made = [what for swap in swaps for what in swap.what.split(", ") if what not in ("", "tried knobs")]
    assert len(made) == len(found.walk.changes)
    assert len(swaps) > 2


def test_a_recompile_stalls_and_is_in_the_record():
    scenario = drifting(cv=0.3, recompile=2.0)
    result = moesim.simulate(scenario, plan(DYNAMOE, gating=PADDED, batching=BATCH))
    events = result.tables["events"]
    assert set(events["event"]) == {"recompiled"}
    assert (events["duration"] == 2.0).all()
    waited = moesim.simulate(drifting(cv=0.3, recompile=0.0), plan(DYNAMOE, gating=PADDED, batching=BATCH))
    assert result.summary["throughput"].mid < waited.summary["throughput"].mid


@pytest.mark.parametrize("reacting", [NONE, REBALANCE], ids=lambda policy: policy.name)
def test_a_simulation_agrees_with_its_estimate(reacting):
    """What drift and reacting to it make of the first step's time comes out alike on both roads."""
    scenario = drifting(cv=0.8, share=1.0)
    chosen, plain = (plan(*each, placement=EPLB, batching=BATCH) for each in ((reacting,), ()))
    estimated = step(scenario, chosen) / step(scenario, plain)
    simulated = (
        moesim.simulate(scenario, chosen).summary["tpot.mean"].mid
        / moesim.simulate(scenario, plain).summary["tpot.mean"].mid
    )
    assert estimated > 1.02
    assert simulated == pytest.approx(estimated, rel=0.02)


def test_a_drift_is_the_same_every_time():
    one, again = (moesim.simulate(drifting(), plan(REBALANCE, placement=EPLB, batching=BATCH)) for _ in range(2))
    assert one.summary == again.summary
    assert one.tables["events"].equals(again.tables["events"])
    assert set(one.tables["events"]["event"]) == {"rebalanced"}
    assert (one.tables["events"]["moved"] > 0).all()


def test_nothing_is_followed_where_nothing_changes_or_nobody_asks():
    still, chosen = world(every=0, workload=BUSY), plan(DYNAMOE, gating=PADDED, batching=BATCH)
    assert followed(still, chosen.pools[0], arrangements(still, seed=0, draws=DRAWS)) is None
    moving = drifting()
    assert followed(moving, plan(batching=BATCH).pools[0], arrangements(moving, seed=0, draws=DRAWS)) is None
    assert moesim.simulate(still, chosen).tables["events"].empty


def test_a_stretched_table_takes_so_many_times_as_long():
    scenario = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", short=True, workload=serving())
    (pool,) = plan(batching=BATCH).pools
    table = tabulate(scenario, pool, arrangements(scenario, seed=0, draws=4), most=256)
    longer = stretched(table, 1.5)
    for sequences, context in ((8, 4000), (64, 300_000)):
        assert longer.decoding(sequences, context) == pytest.approx(1.5 * table.decoding(sequences, context), rel=1e-4)
    mixed = [each.mixed(8, 4000, 100, 5000.0, 20.0) for each in (table, longer)]
    assert mixed[1] == pytest.approx(1.5 * mixed[0], rel=1e-8)
    assert np.isfinite(mixed).all()
    assert stretched(table, 1.0) is table
