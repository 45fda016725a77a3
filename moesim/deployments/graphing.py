"""Which batch sizes get a compiled graph: chosen for the batches that requests like the plan's make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from moesim.deployments.serving.asked import Asked
from moesim.deployments.serving.measures import Served
from moesim.deployments.staging import Deployment, Ready
from moesim.deployments.steps import GRAIN, StepTable
from moesim.deployments.tables import with_units
from moesim.passes.table import batching_of
from moesim.plans.plan import Plan, Policy, Pool
from moesim.policies.buckets import choose_buckets
from moesim.world.scenario import Scenario
from moesim.world.workload import Serving

PILOT = 1_000_003
"""The replication whose requests choose graphs: one that nobody is measured on."""


def unchosen(plan: Plan) -> bool:
    """Whether a plan leaves sizes of graphs open."""
    return any(batching_of(pool).graphs for pool in plan.pools)


def with_graphs(scenario: Scenario, plan: Plan, deployment: Deployment, asked: Asked) -> Plan:
    """Choose the sizes that a plan leaves open: at most so many, that pad what other requests decode least.

    Those requests are served without padding; how often steps that only decode had each size, and what they would take
    at others by the step table, decides (`choose_buckets`, exact). The largest batch always has a graph.
    """
    assert isinstance(scenario.workload, Serving)
    served = deployment.serve(asked)
    requests = scenario.workload.requests
    context = requests.input.mean + requests.output.mean / 2
    first, pools = 0, []
    for ready, pool in zip(deployment.pools, plan.pools, strict=True):
        place = range(first, first + pool.replicas)
        pools.append(_with_buckets(pool, ready.table, _sizes(served, ready.table, place), context))
        first += pool.replicas
    return replace(plan, pools=tuple(pools))


def _sizes(served: Served, table: StepTable, replicas: range) -> Int[np.ndarray, "step 2"]:
    """List the sequences of a dp group in runs of steps that only decode, and how many steps they last."""
    log = served.log
    mine = log[(log[:, 6] >= replicas.start) & (log[:, 6] < replicas.stop) & (log[:, 3] > 0) & (log[:, 4] == 0)]
    return np.stack([-(-mine[:, 3] // table.groups), mine[:, 1]], axis=1)


def _with_buckets(pool: Pool, table: StepTable, steps: Int[np.ndarray, "step 2"], context: float) -> Pool:
    batching, policy = batching_of(pool), pool.policy("batching")
    if not batching.graphs:
        return pool
    weight = np.bincount(steps[:, 0], steps[:, 1], minlength=batching.max_batch + 1)
    sizes = np.append(np.flatnonzero(weight[:-1]), batching.max_batch)

    def cost(each: Int[np.ndarray, "size"]) -> Float[np.ndarray, "size"]:
        return np.array([table.decoding(n, round(n * context * GRAIN)) for n in (each * table.groups).tolist()], float)

    chosen = choose_buckets(sizes, weight[sizes], cost, batching.graphs)
    settings = {name: value for name, value in policy.settings.items() if name != "graphs"}
    sized = Policy(name=policy.name, settings={**settings, "buckets": chosen})
    return replace(pool, policies=MappingProxyType({**pool.policies, "batching": sized}))


def graph_table(served: Served, pools: Sequence[Ready]) -> pd.DataFrame:
    """One row per compiled graph of a pool: the share of decoding steps that run on it, and of their rows that pad."""
    rows: list[dict[str, object]] = []
    first = 0
    for ready in pools:
        steps = _sizes(served, ready.table, range(first, first + ready.pool.replicas))
        first += ready.pool.replicas
        buckets = np.array(ready.table.buckets)
        place = np.searchsorted(buckets, steps[:, 0])
        for number, bucket in enumerate(ready.table.buckets):
            sizes, often = steps[place == number].T
            run = float(often.sum())
            padded = 1 - float(sizes @ often) / (bucket * run) if run else 0.0
            share = run / max(float(steps[:, 1].sum()), 1.0)
            rows.append({"pool": ready.pool.role, "graph": bucket, "steps": share, "padding": padded})
    return with_units(pd.DataFrame(rows, columns=["pool", "graph", "steps", "padding"]), {})
