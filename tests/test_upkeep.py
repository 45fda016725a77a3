"""What happens to replicas besides requests, from a scenario and a plan: cold starts, rebalancing, files, tables."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import worlds
import yaml
from test_simulation import BATCH, DEEPSEEK, EP8, MIXTRAL, mixtral, plan, serving

from moesim.cli import app
from moesim.deployments.arrangements import arrangements
from moesim.deployments.rebalancing import expert_bytes, rebalanced, rebalancing_of, usual_step
from moesim.deployments.result import Result
from moesim.deployments.serving.ticks import ticks
from moesim.deployments.simulation import simulate
from moesim.deployments.steps import GRAIN
from moesim.deployments.tabulation import tabulate
from moesim.deployments.upkeeping import starting
from moesim.files.failures import read_failures
from moesim.ground.errors import InputError
from moesim.plans.plan import Plan, Policy, Pool
from moesim.world.scenario import Failures, Scenario
from moesim.world.workload import Arrivals

REBALANCE = Policy(name="rebalance", settings={"every": 500})


def test_a_cold_start_worked_by_hand() -> None:
    """60 GB a rank over one drive of its own at 6 GB/s; two gpus share 64 GB/s to the host, which is faster."""
    world = mixtral(serving())
    pool = worlds.pool(EP8, batching=BATCH)
    node = world.hardware.offer(pool.node).node
    disk = next(tier for tier in node.tiers if tier.name == "disk")
    world = replace(world, frameworks={"plain": replace(worlds.PLAIN, start=100.0)})
    assert starting(world, pool, 60e9) == pytest.approx(100.0 + 60e9 * disk.sharers / disk.bandwidth)


def world_with_experts() -> tuple[Scenario, Pool]:
    world = worlds.scenario(DEEPSEEK, short=True, cv=0.8, workload=serving())
    pool = worlds.pool(EP8, alltoall="linear", batching=BATCH)
    return world, replace(pool, adaptation=(REBALANCE,))


def test_rebalancing_evens_out_steps_and_pays_for_what_it_moves() -> None:
    world, pool = world_with_experts()
    drawn = arrangements(world, seed=0, draws=4)
    before = tabulate(world, pool, drawn, most=8 * 2048)
    policy = rebalancing_of(world, pool)
    step = usual_step(world, pool, before)
    (found,) = rebalanced(world, pool, policy, drawn, most=8 * 2048, step=step)
    context = 256 * 900 * GRAIN
    assert found.table.decoding(256, context) < before.decoding(256, context)
    assert found.wait == ticks(500 * step)
    assert found.moved > 0
    assert found.moved % expert_bytes(world, pool) == 0
    tier = world.hardware.offer(pool.node).node.tiers[0]
    assert found.stall == ticks(found.moved / tier.bandwidth)
    (silent,) = rebalanced(world, pool, replace(policy, background=True), drawn, most=8 * 2048, step=step)
    assert silent.stall == 0


def test_nothing_to_place_is_no_rebalancing() -> None:
    world, pool = world_with_experts()
    assert rebalancing_of(world, replace(pool, adaptation=())) is None
    dense = worlds.scenario(worlds.MODELS[-1], short=True, workload=serving())
    assert rebalancing_of(dense, pool) is None


@cache
def eventful() -> Result:
    """Nodes fail every few seconds of a run of some minutes, and come back soon."""
    world, pool = world_with_experts()
    world = replace(
        world,
        failures=Failures(interval=16 * 60.0, crash=16 * 90.0, repair=20.0),
        workload=serving(Arrivals(generator="poisson", rate=4.0), requests=1200),
        frameworks={"plain": replace(worlds.PLAIN, start=5.0, rebalance=0.5)},
    )
    return simulate(world, Plan(pools=(replace(pool, replicas=2),), router=Policy(name="least_loaded"), spare_nodes=1))


def test_an_eventful_run_is_told() -> None:
    result = eventful()
    events = result.tables["events"]
    assert set(events["event"]) == {"node failed", "rank failed", "serves", "rebalanced"}
    assert events["time"].is_monotonic_increasing
    assert 0 < result.summary["availability"].mid < 1
    assert np.isfinite(result.tables["requests"]["e2e"]).all()
    upkeep = result.tables["upkeep"].iloc[0]
    assert upkeep["node_fails"] == pytest.approx(60.0)
    assert upkeep["rank_fails"] == pytest.approx(90.0)
    moving = events[events["event"] == "rebalanced"]
    assert (moving["duration"] >= 0.5).all()
    assert (moving["moved"] > 0).all()


def test_a_quiet_run_has_no_events() -> None:
    result = simulate(mixtral(serving(requests=100)), plan())
    assert len(result.tables["events"]) == 0
    assert result.summary["availability"].mid == 1.0
    assert np.isinf(result.tables["upkeep"]["node_fails"][0])


def test_failures_by_name_have_their_sources() -> None:
    found, sources = read_failures("llama3", "a file")
    assert found.interval > 50_000 * 3600
    total = 1 / (1 / found.interval + 1 / found.crash)
    assert total / 3600 == pytest.approx(50_700, rel=0.01)
    assert set(sources) == {"interval", "crash", "repair"}


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ("llama4", "no failures are called `llama4`"),
        ({"interval": "50000 h"}, "`?repair`?|is missing"),
        ({"interval": "-1 h", "repair": "1 h"}, "negative"),
        ({"intervall": "1 h"}, "unknown field"),
        (["llama3"], "not"),
    ],
)
def test_wrong_failures_are_refused(tree: object, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read_failures(tree, "a file")


SCENARIO = {
    "name": "small",
    "model": MIXTRAL,
    "hardware": {
        "offers": [{"node": "nvidia/hgx-h100", "max_nodes": 4, "rent": "list"}],
        "fabric": "infiniband/rail-400g",
    },
    "workload": {
        "kind": "serving",
        "requests": {
            "arrivals": {"generator": "poisson", "rate": "5 /s"},
            "input": {"generator": "constant", "mean": "500 tokens"},
            "output": {"generator": "constant", "mean": "50 tokens"},
        },
        "horizon": {"requests": 2000, "warm_up": 100},
    },
    "routing": {"preset": "mixtral"},
    "failures": {"interval": "1.2 h", "repair": "1 min"},
}
POOL = {"role": "all", "node": "nvidia/hgx-h100", "replicas": 2, "parallel": {"tp": 8, "ep": 8}, "framework": "vllm"}
POLICIES = {"alltoall": "reduce", "scaling": {"name": "queue", "lowest": 1, "hold": "1 min"}}


def test_the_command_line_tells_what_happened(tmp_path, capsys) -> None:
    scenario, chosen = tmp_path / "scenario.yaml", tmp_path / "plan.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    chosen.write_text(yaml.safe_dump({"pools": [{**POOL, "policies": POLICIES}], "spare_nodes": 1}))
    app(["simulate", str(scenario), str(chosen)], result_action="return_value")
    said = capsys.readouterr().out
    assert "What happened to replicas" in said
    assert "node failed" in said
    assert "availability" in said
    assert "the first 100 warm up" in said
    app(["simulate", str(scenario), str(chosen), "--json"], result_action="return_value")
    found = json.loads(capsys.readouterr().out)
    assert {"node failed", "switched off"} <= {each["event"] for each in found["events"]}
    assert found["upkeep"][0]["scaling"] == "queue"
    assert found["summary"]["energy_per_token"]["mid"] > 0


def test_a_wrong_scaling_is_refused(tmp_path) -> None:
    scenario, chosen = tmp_path / "scenario.yaml", tmp_path / "plan.yaml"
    scenario.write_text(yaml.safe_dump(SCENARIO))
    chosen.write_text(yaml.safe_dump({"pools": [{**POOL, "policies": {"scaling": {"name": "queue", "fill": 2}}}]}))
    with pytest.raises(InputError, match="fill = 2; give a share"):
        app(["simulate", str(scenario), str(chosen)])


def test_an_expert_cache_is_in_the_steps() -> None:
    """With half of the experts on the gpu, what is missing is copied in before it is used."""
    world, pool = world_with_experts()
    pool = replace(pool, adaptation=())
    half = Policy(name="lru", settings={"resident": 16})
    cached = replace(pool, policies={**pool.policies, "buffering": half})
    whole, part = (
        simulate(replace(world, workload=serving(requests=60)), Plan(pools=(each,))) for each in (pool, cached)
    )
    assert part.summary["tpot.mean"].mid > 1.2 * whole.summary["tpot.mean"].mid
