"""Experts in host memory, copied in once the gate has chosen: early and determinate with a shortcut, else blocking.

ScMoE (arXiv 2404.05019): the early gate's choice is final, so that a copy costs max(0, t - window) instead of t.
"""

import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import moesim
from moesim.cli import main
from moesim.deployments.arrangements import arrangements
from moesim.deployments.floors import floor_estimates
from moesim.deployments.pools import DRAWS, estimator_of
from moesim.passes.shortcut import thin
from moesim.passes.table import table_of
from moesim.plans.plan import Parallel, Plan, Policy
from moesim.schedules.costs.fits import machine_of
from moesim.world.generators import skewed
from moesim.world.workload import Arrivals, Lengths, Requests, Serving

MODEL, NODE, PAIRS = "scmoe/GPT2-MoE-Medium", "pcie/a30x8", 12
ONE = Policy(name="continuous", settings={"max_batch": 1})
CACHED = Policy(name="lifo", settings={"resident": 1})
RESIDENT = Policy(name="resident")
EXPERT = 2 * 1024 * 4096 * 2  # bytes in fp16


@cache
def world(pcie=24e9):
    """One token at a time on one A30, whose link to the host is as fast as said; prompts are of one token, too."""
    requests = Requests(
        arrivals=Arrivals(generator="closed", concurrency=1),
        input=Lengths(generator="fixed", mean=1.0),
        output=Lengths(generator="fixed", mean=500.0),
    )
    base = worlds.offer(NODE, 1)
    tiers = tuple(replace(each, bandwidth=pcie) if each.name == "host" else each for each in base.node.tiers)
    offer = replace(base, node=replace(base.node, tiers=tiers))
    workload = Serving(requests=requests, targets=(), horizon=30, warm_up=3)
    return worlds.scenario(MODEL, offers=(offer,), workload=workload, cv=0.1)


def plan(shortcut, buffering, position=2):
    settings = {"position": position} if shortcut == "scmoe" else {}
    policies = {
        "shortcut": Policy(name=shortcut, settings=settings),
        "buffering": buffering,
        "alltoall": Policy(name="reduce"),
        "batching": ONE,
    }
    return Plan(pools=(worlds.pool(Parallel(), node=NODE, **policies),))


@cache
def estimated(shortcut, buffering, position=2, pcie=24e9):
    return moesim.estimate(world(pcie), plan(shortcut, buffering, position))


def step(*chosen, **settings):
    return estimated(*chosen, **settings).summary["step"].mid


def parts(result):
    return result.tables["breakdown"].set_index("part")


def fetched(pcie):
    """Seconds of copies in a pass that only decodes, by the difference that they make where they block."""
    return step("shared", CACHED, pcie=pcie) - step("shared", RESIDENT)


def test_a_blocking_copy_costs_its_bytes():
    """Twelve pairs copy one expert each, unless it is the one there: half the link's speed, as much time again."""
    node, pool = world().node(NODE, "plain"), plan("shared", CACHED).pools[0]
    missing = arrangements(world(), seed=0, draws=DRAWS).layout(pool, 1.0).missing
    assert 0.85 < missing <= 1  # of sixteen experts the one that was used last is there
    rate = machine_of(node, ()).transfer("copy", "host").params["efficiency"] * 24e9
    assert fetched(12e9) - fetched(24e9) == pytest.approx(PAIRS * missing * EXPERT / rate, rel=0.01)
    shown = parts(estimated("shared", CACHED)).loc["fetch"]
    assert shown["busy"] == pytest.approx(shown["exposed"])
    assert shown["busy"] == pytest.approx(fetched(24e9), rel=0.01)


@pytest.mark.parametrize("position", [1, 2, 3])
def test_a_determinate_copy_costs_what_the_window_leaves(position):
    """The window is what the backbone computes between the tap and the experts: once found, it holds at every speed."""
    window = fetched(6e9) - (step("scmoe", CACHED, position, pcie=6e9) - step("scmoe", RESIDENT, position))
    for pcie in (12e9, 24e9, 48e9, 96e9, 400e9):
        left = step("scmoe", CACHED, position, pcie=pcie) - step("scmoe", RESIDENT, position)
        assert left == pytest.approx(max(0.0, fetched(pcie) - window), rel=0.03, abs=1e-6)
    named = parts(estimated("scmoe", RESIDENT, position))["busy"]
    attention, mlp, shared = named["attention"] / 2, named["mlp"], named["shared"]
    computed = {1: attention + shared, 2: attention + shared + mlp, 3: 2 * attention + shared + mlp}[position]
    assert computed <= window <= computed + named["norm"]


def test_simulated_tokens_take_as_long_as_estimated_ones():
    for shortcut in ("shared", "scmoe"):
        found = moesim.simulate(world(), plan(shortcut, CACHED)).summary["tpot.mean"].mid
        assert found == pytest.approx(step(shortcut, CACHED), rel=0.03)


@given(
    arrays(int, (3, 2, 8), elements=st.integers(0, 40)),
    st.sampled_from([0.125, 0.25, 0.5, 0.75, 1.0]),
)
def test_thinned_counts_are_whole_and_add_up(counts, share):
    kept = thin(counts, share)
    assert (kept >= 0).all()
    assert (kept <= counts).all()
    assert (np.abs(kept - counts * share) < 1 + 1e-6).all()
    assert (np.abs(kept.sum(axis=-1) - counts.sum(axis=-1) * share) < 1 + 1e-6).all()


def test_every_choice_is_kept_equally_often():
    kept = thin(np.tile([1, 0, 1, 2], (4000, 1, 1)), 0.5).mean(axis=(0, 1))
    assert kept == pytest.approx([0.5, 0.0, 0.5, 1.0], abs=4 * 0.5 / 4000**0.5)


@pytest.mark.parametrize("shortcut", ["fewer", "shared", "scmoe"])
@pytest.mark.parametrize("batch", [1, 16])
def test_bounds_stay_below_where_tokens_choose_fewer_experts(shortcut, batch):
    scenario = worlds.scenario("mistralai/Mixtral-8x7B-v0.1", short=True, cv=0.5)
    batching = Policy(name="continuous", settings={"max_batch": batch})
    pools = [
        worlds.pool(parallel, shortcut=Policy(name=shortcut), batching=batching)
        for parallel in (Parallel(dp=8, ep=8), Parallel(dp=8, ep=4, etp=2))
    ]
    estimator = estimator_of(scenario, table_of(pools))
    lower = floor_estimates(estimator, np.arange(2)).step
    assert (lower <= estimator.estimate(np.arange(2)).step).all()
    assert (lower > 0).all()


SCENARIO = """
name: Experts in host memory
model: scmoe/GPT2-MoE-Medium
hardware:
  offers: [{node: pcie/a30x8, max_nodes: 1, rent: {value: 1 USD/h, from: list}}]
  fabric: infiniband/rail-400g
  sources: {list: {kind: assumed, title: none}}
workload:
  kind: serving
  requests:
    arrivals: {generator: closed, concurrency: 1}
    input: {generator: constant, mean: 1 token}
    output: {generator: constant, mean: 500 tokens}
  targets: {}
  horizon: {requests: 30, warm_up: 3}
routing: {cv: 0.1}
"""

PLAN = """
pools:
  - role: all
    node: pcie/a30x8
    replicas: 1
    parallel: {pp: 1, dp: 1, tp: 1, cp: 1, ep: 1, etp: 1}
    framework: plain
    policies:
      shortcut: {name: scmoe, position: 2}
      buffering: {name: lifo, resident: 1, tier: host}
      alltoall: reduce
      batching: {name: continuous, max_batch: 1}
"""


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # main() reads sys.argv
def test_the_command_prints_what_is_hidden(tmp_path, monkeypatch, capsys):
    (tmp_path / "world.yaml").write_text(SCENARIO)
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.setattr(sys, "argv", ["moesim", "estimate", *(str(tmp_path / f"{n}.yaml") for n in ("world", "plan"))])
    with pytest.raises(SystemExit):
        main()
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("fetch"))
    busy, exposed = (float(word) for word in line.split()[1:4:2])
    assert 5 < busy < 9
    assert exposed == busy  # longer than the window: the rest of the block hides behind the copy


def test_a_routing_of_one_choice_is_left_as_it_is():
    routing = skewed(2, experts=8, topk=2, cv=0.3, seed=0)
    counts = routing.draw(np.array([100]), 0, np.random.default_rng(0))
    assert np.array_equal(thin(counts, 1.0), counts)
