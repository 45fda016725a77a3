"""Rebalancing under a routing that stays: one change from the placement a pool starts with to one made for its load.

Where routing changes, `drifting` takes over.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.deployments.arrangements import Arrangements
from moesim.deployments.serving.control import Swap
from moesim.deployments.serving.ticks import PER_SECOND, ticks
from moesim.deployments.steps import GRAIN, StepTable
from moesim.deployments.tabulation import tabulate
from moesim.ground.streams import stream
from moesim.ground.units import Bytes, BytesPerSecond, Seconds
from moesim.plans.layout import Layout
from moesim.plans.plan import Pool
from moesim.policies.adaptation.rebalance import Rebalance
from moesim.policies.finding import make
from moesim.policies.protocols import Batching, Change, Seen, Sizes
from moesim.world.formats import bytes_of
from moesim.world.hardware import network
from moesim.world.model import expert_parameters
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

LOAD = 10**6
"""Choices that the load is counted in."""


def rebalancing_of(scenario: Scenario, pool: Pool) -> Rebalance | None:
    """The policy that places a pool's experts anew; None where there is none, or nothing to place."""
    if not scenario.model.moe_layers:
        return None
    made = [make("adaptation", policy) for policy in pool.adaptation]
    return next((policy for policy in made if isinstance(policy, Rebalance)), None)


def rebalanced(
    scenario: Scenario, pool: Pool, policy: Rebalance, drawn: Arrangements, *, most: int, step: Seconds
) -> tuple[Swap, ...]:
    """Tabulate the placement that replaces the first, `policy.every` steps later; none where nothing moves."""
    layout, asked = drawn.layout(pool, 1.0), replace(policy, every=1, memory=1.0)
    state, rng = asked.start(layout, _sizes(scenario, pool)), stream(drawn.seed, "rebalancing")
    _, change = asked(state, _seen(scenario, layout), rng)
    if change is None or not change.moved:
        return ()
    table = tabulate(scenario, pool, drawn.placing(change.layout.expert_of_slot), most=most)
    stall, wait = ticks(_stall(scenario, pool, change)), ticks(policy.every * step)
    return (Swap(table=table, wait=wait, stall=stall, what="rebalanced", moved=change.moved),)


def _seen(scenario: Scenario, layout: Layout) -> Seen:
    """What the first steps show: the mean shares of the routing."""
    counts = np.rint(scenario.routing.shares(0) * LOAD).astype(np.int64)
    return Seen(
        step=0,
        layout=layout,
        counts=counts,
        most=counts.max(axis=1),
        agreement=1.0,
        cost_of=lambda other: np.zeros(len(counts)),
    )


def _sizes(scenario: Scenario, pool: Pool) -> Sizes:
    node = scenario.hardware.offer(pool.node).node
    gpus = pool.parallel.ep * pool.parallel.etp
    return Sizes(
        tokens=1,
        topk=scenario.routing.topk,
        gpus=gpus,
        nodes=max(1, gpus // node.gpus),
        expert=expert_bytes(scenario, pool),
    )


def expert_bytes(scenario: Scenario, pool: Pool) -> Bytes:
    """Weights of one expert of one layer on a rank."""
    model = scenario.model
    stored = pool.precision.get("experts") or model.dtype_of["experts"]
    moe = model.moe(model.moe_layers[0])
    return float(expert_parameters(moe) * bytes_of(stored) / pool.parallel.etp)


def _stall(scenario: Scenario, pool: Pool, change: Change) -> Seconds:
    """How long ranks wait: for the host, and for the weights; for neither where both go on beside the steps."""
    if change.background:
        return 0.0
    return scenario.frameworks[pool.framework].rebalance + change.moved / _rate(scenario, pool)


def _rate(scenario: Scenario, pool: Pool) -> BytesPerSecond:
    """At which a gpu copies weights in: that of the innermost tier that reaches all ranks with experts."""
    tiers = network(scenario.hardware.offer(pool.node).node, scenario.hardware.fabric)
    needed = pool.parallel.ep * pool.parallel.etp
    tier = next((tier for tier in tiers if tier.ranks >= needed), tiers[-1])
    return tier.bandwidth / tier.sharers


def usual_step(scenario: Scenario, pool: Pool, table: StepTable) -> Seconds:
    """How long a step takes with half the sequences a replica may hold."""
    assert isinstance(scenario.workload, Serving)
    batching: Batching = make("batching", pool.policy("batching"))
    requests = scenario.workload.requests
    sequences = max(batching.max_batch * pool.parallel.dp // 2, 1)
    context = round(sequences * (requests.input.mean + requests.output.mean / 2)) * GRAIN
    return table.decoding(sequences, context) / PER_SECOND
