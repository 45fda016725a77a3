"""What a simulated deployment draws, its ranges, and rates that never contradict each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import worlds
from test_serving import ONE, served, steps_of
from test_simulation import mixtral, plan, serving

from moesim.deployments.energy import draw_of
from moesim.deployments.pace import hurried, slowed
from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.measures import busy_shares, given, rates
from moesim.deployments.serving.ticks import NEVER, PER_SECOND
from moesim.deployments.simulation import simulate
from moesim.files.power import built_in_power, read_power
from moesim.ground.errors import InputError
from moesim.plans.plan import Parallel
from moesim.world.power import Power
from moesim.world.workload import Arrivals

SHARES = Power(idle=0.1, decode=0.5, prompts=0.9, box=0.6)


def two_requests() -> Asked:
    """10 prompt and 3 output tokens each, half a second apart."""
    tokens = np.array([10, 10])
    return Asked(
        arrival=np.array([0, PER_SECOND // 2]),
        prompt=tokens,
        output=np.array([3, 3]),
        shared=0 * tokens,
        session=0 * tokens - 1,
    )


def test_power_worked_by_hand() -> None:
    """In a window of 0.5 s: 0.1 s of prompts and 0.2 s of decodes; eight gpus in a box, and one spare."""
    run = served(two_requests(), steps_of(0.0, fixed=0.1), replace(ONE, sequences=8))
    assert busy_shares(run).tolist() == pytest.approx(np.array([[0.4, 0.2]]))
    world = replace(mixtral(serving()), power=SHARES)
    pool = worlds.pool(Parallel(tp=8, ep=8), alltoall="reduce")
    node = world.hardware.offer(pool.node).node
    drawn = draw_of(world, replace(plan(pool), spare_nodes=1)).mean(run)
    gpus = 8 * node.device.power
    resting = 2 * (0.6 * node.power + 0.1 * gpus)
    assert drawn == pytest.approx(resting + gpus * (0.4 * (0.5 - 0.1) + 0.2 * (0.9 - 0.1)))


def test_tokens_given_in_a_window_add_up() -> None:
    run = served(two_requests(), steps_of(0.0, fixed=0.1), replace(ONE, sequences=8))
    assert given(run, 0.0, 1.0).tolist() == pytest.approx([3.0, 3.0])
    assert given(run, 0.0, 0.2).tolist() == pytest.approx([2.0, 0.0])
    assert sum(given(run, start, start + 0.1).sum() for start in (0.05, 0.15, 0.25)) == pytest.approx(1 + 2 - 0.5 + 0.5)


@pytest.mark.parametrize("rate", [2.0, 40.0, 4000.0])
def test_rates_agree_whatever_the_load(rate: float) -> None:
    """Who is served gets tokens, and nobody is good who is not served."""
    world = mixtral(serving(Arrivals(generator="poisson", rate=rate), ttft_p99=1e4))
    found = simulate(world, plan()).summary
    assert found["goodput"].mid >= 0
    assert found["throughput"].mid > 0
    length = 150.0
    assert found["goodput"].mid <= 1.2 * found["throughput"].mid / length + 1e-9


def test_nothing_done_in_the_window_is_no_goodput() -> None:
    load = two_requests()
    run = served(load, steps_of(0.0, fixed=1.0), replace(ONE, sequences=8))
    found = rates(run, {"ttft": 100.0})
    assert (found["goodput"], found["completed"], found["throughput"]) == (0, 0, 0)


def test_more_load_draws_more_and_each_token_takes_less() -> None:
    light, busy = (
        simulate(replace(mixtral(serving(Arrivals(generator="poisson", rate=rate))), power=SHARES), plan()).summary
        for rate in (2.0, 60.0)
    )
    assert busy["power"].mid > light["power"].mid
    assert busy["energy_per_token"].mid < light["energy_per_token"].mid
    assert light["energy_per_token"].mid == pytest.approx(light["power"].mid / light["throughput"].mid)


def test_ranges_hold_their_number_and_grow_with_replications() -> None:
    world = mixtral(serving(requests=300))
    alone, several = simulate(world, plan()).summary, simulate(world, plan(), replications=4).summary
    for found in (alone, several):
        assert all(each.low <= each.mid <= each.high for each in found.values() if np.isfinite(each.mid))
    width = several["ttft.p99"].high - several["ttft.p99"].low
    assert width > 0
    assert several["price"].low == several["price"].high
    assert alone["tpot.p50"].high > alone["tpot.p50"].mid  # what the costs may be wrong by


def test_slow_steps_are_a_slow_clock() -> None:
    """Steps twice as long under the same requests are those of requests twice as fast, read twice as late."""
    load = two_requests()
    slow = served(load, steps_of(0.0, fixed=0.2), replace(ONE, sequences=8))
    fast = served(hurried(load, 2.0), steps_of(0.0, fixed=0.1), replace(ONE, sequences=8))
    assert (2 * fast.e2e).tolist() == pytest.approx(slow.e2e.tolist())
    assert slowed(rates(fast, {}), 2.0) == pytest.approx(rates(slow, {}))
    closed = replace(load, arrival=np.full(2, NEVER))
    assert (hurried(closed, 2.0).arrival == NEVER).all()


def test_shares_ship_with_their_sources() -> None:
    power, sources = built_in_power()
    assert 0 < power.idle < power.decode < power.prompts <= 1
    assert set(sources) == {"idle", "decode", "prompts", "box"}


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"idle": {"value": 1.5, "from": "us"}, "sources": {"us": {"kind": "assumed", "title": "a test"}}}, "no share"),
        ({"idle": 0.1}, "has no source"),
        (3, "is not a section"),
        ({"sleep": 0.1}, "unknown field"),
    ],
)
def test_a_wrong_section_is_refused(tree: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_power(tree, "a file")
